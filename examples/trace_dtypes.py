"""What a QLoRA model computes in, in training and in generation: ``python examples/trace_dtypes.py``. No download.

With the name of a file it also writes a page: ``python examples/trace_dtypes.py trace.html``; and
``python examples/trace_dtypes.py report`` says what to expect of it, and does not run it.
"""

import qlora_bf16_patch  # isort: skip  # at the top, as in any script

import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    pad_token_id=0,
)
with tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantization,
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
model.get_output_embeddings().to(torch.bfloat16)  # as the QLoRA script does

if sys.argv[1:] == ["report"]:
    report = qlora_bf16_patch.report(model)
    report.to_json("report.json")
    print(report)
    sys.exit()

ids = torch.arange(3, 9, device=model.device)[None]

with qlora_bf16_patch.trace(model) as trace:
    with torch.autocast(model.device.type, torch.bfloat16):
        model.train()(input_ids=ids, labels=ids).loss.backward()
    model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)

print(trace)
print()
print("Training and generation differ at:")
for difference in trace.compare("training", "generation"):
    if difference.column == "casts":
        print(f"  {difference}")

if len(sys.argv) > 1:
    trace.to_html(sys.argv[1])
