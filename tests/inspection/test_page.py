"""The page of a trace, as a browser shows it."""

import io
import itertools
import math
import re

import pytest
import torch
from PIL import Image

import qlora_bf16_patch
from qlora_bf16_patch.inspection import Trace
from qlora_bf16_patch.inspection.observed import CastSeen, Ran
from qlora_bf16_patch.inspection.page import Dtypes, Mark, Seen
from qlora_bf16_patch.inspection.page.rows import rows
from toys.models import Toy, lora_model

from .browser import chromium, missing

X = torch.randn(2, 3, 64)
HEAD, PROJ = "base_model.model.head", "base_model.model.proj"
SCHEMES = ("light", "dark")
ROW = "[...document.querySelectorAll('tbody tr')].find(row => row.dataset.path === arguments[0])"
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def browser():
    if reason := missing():
        pytest.skip(reason)
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def trained():
    """A toy that was trained under autocast and evaluated outside of it."""
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(X).sum().backward()
        with torch.no_grad():
            model.eval()(X)
            model(X)
    return trace


class HeadFirst(Toy):
    def forward(self, x):
        return self.head(x)


def layers(count, odd=None, phases=("training", "evaluation", "generation")):
    """A trace of a Llama with adapters on every projection, as it is recorded; in ``odd`` one weight is another's."""
    trace = Trace()
    for phase in phases:
        for layer in range(count):
            path = f"model.layers.{layer}"
            trace.ran[Ran(path, "LlamaDecoderLayer", phase, ("float32",), None, None, None, ("float32",))] += 2
            for norm in ("input_layernorm", "post_attention_layernorm"):
                trace.ran[
                    Ran(f"{path}.{norm}", "LlamaRMSNorm", phase, ("float32",), "float32", None, None, ("float32",))
                ] += 2
            for name in PROJECTIONS:
                inside = f"{path}.{name}"
                weight = "int8" if layer == odd and name == "mlp.down_proj" else "nf4"
                trace.ran[Ran(inside, "Linear4bit", phase, ("float32",), None, None, None, ("float32",))] += 2
                base = ("float32",), weight, "bfloat16", "bfloat16", ("bfloat16",)
                trace.ran[Ran(f"{inside}.base_layer", "Linear4bit", phase, *base)] += 2
                for adapter in ("lora_A.default", "lora_B.default"):
                    half = ("float32",), "float32", None, "bfloat16", ("bfloat16",)
                    trace.ran[Ran(f"{inside}.{adapter}", "Linear", phase, *half)] += 2
    return trace


@pytest.fixture
def shown(browser, tmp_path):
    """Opens a trace's page."""

    def show(trace, **how):
        file = tmp_path / "page.html"
        assert trace.to_html(file) == file.read_text(encoding="utf-8")
        browser.open(file, **how)
        return browser

    return show


def visible(browser):
    """The names of the rows that are shown."""
    return browser.run("return [...document.querySelectorAll('tbody tr:not([hidden]) .name')].map(e => e.textContent)")


def cell(browser, path, column):
    """What a cell says, how it is outlined, and what is told where somebody points at it."""
    return browser.run(
        f"""const cell = {ROW}.cells[arguments[1]], style = getComputedStyle(cell);
        const parts = [...cell.children].filter(part => !part.matches('.numbers'));
        return {{
            said: parts.map(part => part.innerText).join(' ').split(/\\s+/).join(' ').trim(),
            outline: style.outlineStyle, width: parseFloat(style.outlineWidth),
            numbers: cell.querySelector('.numbers').textContent,
        }}""",
        path,
        column,
    )


def click(browser, path, button):
    """On one of a row's buttons."""
    browser.run(f"{ROW}.querySelector(arguments[1]).click()", path, button)


def type_in(browser, words):
    browser.run(
        "const filter = document.getElementById('filter'); filter.value = arguments[0];"
        "filter.dispatchEvent(new Event('input'))",
        words,
    )


def press(browser, keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser.driver).send_keys(*keys).perform()


def tip(browser):
    """What is shown of a cell's numbers now."""
    return browser.run("const tip = document.getElementById('tip'); return tip.hidden ? null : tip.innerText")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_loads_nothing_and_the_console_is_silent(shown, trained, scheme):
    browser = shown(trained, scheme=scheme)
    addresses = browser.requests()
    assert [address for address in addresses if address.startswith("file:")] == addresses[:1]
    assert all(address.startswith("data:") for address in addresses[1:])
    assert browser.messages() == []


def test_modules_are_rows_and_phases_are_columns(shown, trained):
    browser = shown(trained)
    heads = browser.run("return [...document.querySelectorAll('thead th')].map(head => head.innerText)")
    assert [head.split() for head in heads] == [
        ["module"],
        ["training", "under", "autocast", "bf16"],
        ["evaluation", "no", "autocast"],
    ]
    names = visible(browser)
    assert names[:3] == ["(the model)", "base_model.model", "proj"]
    assert {"proj", "base_layer", "lora_A.default", "lora_B.default", "head"} <= set(names)
    assert cell(browser, HEAD, 1)["said"] == "fp32 → bf16 → bf16"
    assert cell(browser, "base_model.model.proj.base_layer", 1)["said"].startswith("fp32 → nf4 bf16 →")


def test_a_column_has_the_autocast_of_the_model_and_not_of_the_call_around_it_or_the_layers(shown):
    trace = Trace()
    inside = {
        "": None,
        "model": "bfloat16",
        "model.q": "bfloat16",
        "model.q.lora_A": "float16",
        "model.q.lora_B": "float16",
    }
    for path, autocast in {**inside, "model.head": "bfloat16"}.items():
        trace.ran[Ran(path, "Linear", "training", (), None, None, autocast, ())] += 1
    browser = shown(trace)
    assert browser.run("return document.querySelector('thead small').innerText").split() == [
        "under",
        "autocast",
        "bf16",
    ]
    said = {path: cell(browser, path, 1)["said"] for path in ("", "model", "model.q", "model.q.lora_A")}
    assert said == {"": "no autocast", "model": "", "model.q": "", "model.q.lora_A": "autocast fp16"}


def test_a_mismatch_is_outlined_and_told_beside_its_numbers(shown, trained):
    browser = shown(trained)
    training, evaluation = cell(browser, HEAD, 1), cell(browser, HEAD, 2)
    assert (training["outline"], training["said"]) == ("none", "fp32 → bf16 → bf16")
    assert (evaluation["outline"], evaluation["width"]) == ("solid", 3)
    assert evaluation["said"].endswith("mismatch linear input fp32 → bf16")
    assert "float32 to bfloat16 · 2 times · by peft.boundary" in evaluation["numbers"]


def test_a_cast_that_torch_would_not_have_asked_for_is_outlined_lightly(shown, trained):
    browser = shown(trained)
    light = cell(browser, PROJ, 2)
    assert (light["outline"], light["width"]) == ("solid", 1)
    assert light["said"].endswith("cast adapter, input, result")
    assert "cast result, bfloat16 to float32 · 2 times · by peft.lora.linear4bit" in " ".join(light["numbers"].split())


def test_pointing_at_a_cell_and_going_to_it_shows_its_numbers(shown, trained):
    from selenium.webdriver.common.action_chains import ActionChains

    browser = shown(trained)
    assert tip(browser) is None
    target = browser.run("return document.querySelector('td.heavy')")
    ActionChains(browser.driver).move_to_element(target).perform()
    assert "2 calls · input float32 · weight bfloat16 · no autocast · output float32" in tip(browser)
    ActionChains(browser.driver).move_to_element(browser.run("return document.querySelector('h1')")).perform()
    assert tip(browser) is None
    browser.run("arguments[0].focus()", target)
    assert "2 times · by peft.boundary" in tip(browser)
    assert browser.run("return arguments[0].getAttribute('aria-describedby')", target) == "tip"
    press(browser, ["\ue00c"])  # Escape
    assert tip(browser) is None


def test_the_table_is_one_stop_of_the_tab_key_and_arrows_go_through_it(shown, trained):
    browser = shown(trained)
    assert browser.run("return document.querySelectorAll(\"td[tabindex='0']\").length") == 1
    here = "const at = document.activeElement; return at.closest('tr') && [at.closest('tr').dataset.path, at.cellIndex]"
    browser.run("document.querySelector(\"td[tabindex='0']\").focus()")
    assert browser.run(here) == ["", 1]
    press(browser, ["\ue014", "\ue015", "\ue015"])  # right, down, down
    assert browser.run(here) == [PROJ, 2]
    press(browser, ["/"])
    assert browser.run("return document.activeElement.id") == "filter"


def test_a_filter_leaves_what_fits_and_what_is_around_it(shown, trained):
    browser = shown(trained)
    everything = visible(browser)
    type_in(browser, "LORA_a proj")
    assert visible(browser) == ["(the model)", "base_model.model", "proj", "lora_A.default"]
    assert browser.run("return document.getElementById('shown').value") == "1 module in 1 row"
    type_in(browser, "Linear4bit")
    assert set(visible(browser)) >= {"proj", "base_layer"} and "head" not in visible(browser)
    type_in(browser, "nowhere")
    assert visible(browser) == []
    assert browser.run("return document.querySelector('tfoot:not([hidden])').innerText") == "No module fits."
    type_in(browser, "")
    assert visible(browser) == everything


def test_a_switch_leaves_the_mismatches(shown, trained):
    browser = shown(trained)
    browser.run("document.getElementById('heavy').click()")
    assert visible(browser) == ["(the model)", "base_model.model", "head"]


def test_alike_layers_are_one_row_that_unfolds(shown):
    trace = layers(4)
    trace.ran[next(seen for seen in trace.ran if seen.path.endswith("2.mlp.up_proj"))] += 5
    browser = shown(trace)
    folded = visible(browser)
    assert folded[0] == "model.layers.[0-3]" and folded.count("mlp.up_proj") == 1
    numbers = cell(browser, "model.layers.[0-3].mlp.up_proj", 1)["numbers"]
    assert "13 calls, 2 to 7 a module" in numbers
    click(browser, "model.layers.[0-3].mlp.up_proj", ".count")
    singles = [f"layers.{number}.mlp.up_proj" for number in range(4)]
    assert [name for name in visible(browser) if "mlp.up_proj" in name] == ["mlp.up_proj", *singles]
    assert "2 calls ·" in cell(browser, "model.layers.1.mlp.up_proj", 1)["numbers"]
    assert "7 calls ·" in cell(browser, "model.layers.2.mlp.up_proj", 1)["numbers"]
    click(browser, "model.layers.[0-3].mlp.up_proj", ".count")
    assert visible(browser) == folded


def test_a_layer_that_differs_has_a_row_that_says_which_one_it_is(shown):
    browser = shown(layers(6, odd=4))
    type_in(browser, "down_proj.base_layer")
    heads = browser.run("return [...document.querySelectorAll('tbody tr:not([hidden]) th')].map(th => th.innerText)")
    words = [" ".join(head.split()) for head in heads if "base_layer" in head]
    assert words == ["base_layer in layers.[0-3, 5] 5\u00d7 Linear4bit", "base_layer in layers.4 Linear4bit"]


def test_a_filter_finds_single_layers(shown):
    browser = shown(layers(12))
    type_in(browser, "layers.4. up_proj.lora_b")
    assert "layers.4.mlp.up_proj.lora_B.default" in visible(browser)
    assert not any("layers.5" in name for name in visible(browser))
    assert browser.run("return document.getElementById('shown').value") == "1 module in 1 row"


def test_what_is_inside_of_a_row_can_be_closed(shown, trained):
    browser = shown(trained)
    before = visible(browser)
    click(browser, PROJ, ".fold")
    assert [name for name in before if name not in visible(browser)] == [
        name for name in before if name in ("base_layer", "lora_dropout.default", "lora_A.default", "lora_B.default")
    ]
    click(browser, PROJ, ".fold")
    assert visible(browser) == before


def test_what_torch_refused_is_outlined_in_its_phase(shown):
    model = lora_model()
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError), qlora_bf16_patch.trace(model) as trace:
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(X)
        with trace.phase("callback"):
            model.eval()(X)
    assert trace.error_phase == "callback" == Trace.from_json(trace.to_json()).error_phase
    browser = shown(trace)
    refused = cell(browser, HEAD, 2)
    assert refused["width"] == 3 and refused["said"].startswith("refused expected m")
    assert cell(browser, HEAD, 1)["outline"] == "none"
    said = browser.run("return document.querySelector('.notes').innerText")
    assert "It ended with torch's refusal in base_model.model.head" in said


def test_a_refusal_of_the_first_call_has_a_column(shown):
    model = lora_model(toy=HeadFirst())
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError), qlora_bf16_patch.trace(model) as trace:
        model(X)
    assert not trace.ran
    browser = shown(trace)
    assert cell(browser, HEAD, 1)["said"].startswith("refused")


def test_a_trace_of_nothing_says_so(shown):
    with qlora_bf16_patch.trace(lora_model()) as trace:
        pass
    browser = shown(trace)
    text = browser.run("return document.body.innerText")
    assert "modules with a weight never ran" in text and "What never ran" in text
    assert browser.messages() == []


@pytest.mark.parametrize("name", ["<script>window.hit = 1</script>", "</script><img src=x onerror='hit = 1'>", '"><b>'])
def test_names_are_text(shown, name):
    trace = Trace()
    for path in (name, f"layers.0.{name}", f"layers.1.{name}"):
        trace.ran[Ran(path, name, name, ("float32",), name, None, None, (name,))] += 1
        trace.casts[CastSeen(path, name, name, name, name, "float32", name, name)] += 1
    trace.never_ran, trace.error, trace.error_phase = (name,), f"{name}: {name}", name
    browser = shown(trace)
    assert browser.run("return window.hit") is None
    assert browser.run("return document.querySelectorAll('body img, body b:not(.chip)').length") == 0
    assert browser.run("return document.querySelector('tbody .class').textContent") == name
    browser.run("document.querySelectorAll('.count').forEach(button => button.click())")
    type_in(browser, name)
    assert name in visible(browser) and browser.run("return window.hit") is None
    assert browser.messages() == [] and len([url for url in browser.requests() if url[:5] != "data:"]) == 1


CONTRASTS = """
const channel = value => { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4 };
const parsed = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = parsed(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = {};
document.querySelectorAll('td.outlined')[0].focus();
for (const element of document.body.querySelectorAll('*:not(script)')) {
  const own = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!own || !element.getClientRects().length) continue;
  const pair = [light(parsed(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
  found[`${element.tagName}.${element.className}`] = (pair[0] + .05) / (pair[1] + .05);
}
return found;
"""


def lab(colour):
    """Of sRGB in CIE L*a*b*, where a distance is how different two colours look (D65; CIE 1976)."""
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in colour)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


EVERY = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "nf4", "fp4", "int8", "float4_e2m1fn_x2")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_is_readable_on_what_is_behind_it(shown, scheme):
    trace = layers(3, odd=1)
    for dtype in EVERY:
        trace.ran[Ran("model.head", "Linear", "training", (dtype,), dtype, None, dtype, (dtype,))] += 1
    trace.casts[CastSeen("model.head", "Linear", "training", "linear", "input", "float32", "int8", "a patch")] += 1
    trace.never_ran, trace.error, trace.error_phase = ("model.tail",), "model.head: no", "training"
    browser = shown(trace, scheme=scheme)
    contrasts = browser.run(CONTRASTS)
    assert len([what for what in contrasts if ".chip" in what]) >= 8
    assert any(what.startswith("SPAN.of") for what in contrasts), "of the numbers, which are shown"
    assert {what: ratio for what, ratio in contrasts.items() if ratio < 4.5} == {}


def test_the_schemes_differ(shown, trained):
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert len({shown(trained, scheme=scheme).run(ground) for scheme in SCHEMES}) == 2


def test_a_dtype_is_told_by_its_letters_too(shown):
    trace = Trace()
    for dtype in EVERY:
        trace.ran[Ran("head", "Linear", "training", (dtype,), None, None, None, ())] += 1
    browser = shown(trace)
    chips = browser.run("return [...document.querySelectorAll('td .chip')].map(chip => chip.innerText)")
    assert len(set(chips)) == len(EVERY) and all(chips)


@pytest.mark.parametrize("deficiency", ["none", "protanopia", "deuteranopia", "tritanopia"])
def test_colours_are_told_apart_by_colour_blind_readers(shown, deficiency):
    trace = Trace()
    for dtype in EVERY:
        trace.ran[Ran("head", "Linear", "training", (dtype,), None, None, None, ())] += 1
    browser = shown(trace)
    places = browser.run(
        """return Object.fromEntries([...document.querySelectorAll('.legend .chip:not(.c-other)')].map(chip => {
            const at = chip.getBoundingClientRect();
            return [chip.className, [at.left + 4, at.top + 3]];
        }))"""
    )
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": deficiency})
    with Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())) as shot:
        colours = {name: lab(shot.convert("RGB").getpixel((int(x), int(y)))) for name, (x, y) in places.items()}
    assert len(colours) == 7
    near = {pair: math.dist(*map(colours.get, pair)) for pair in itertools.combinations(colours, 2)}
    assert {pair: distance for pair, distance in near.items() if distance < 12} == {}  # 2.3 is just noticeable


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_window(shown, width):
    trace = layers(3, odd=1)
    trace.error, trace.error_phase = f"model.layers.0.mlp: {'a_long_word_' * 30}", "generation"
    browser = shown(trace, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.querySelector('table').offsetWidth") > 700, "it scrolls inside of its frame"


def test_eighty_layers_of_seven_projections(shown, tmp_path):
    browser = shown(layers(80, odd=17))
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert len(visible(browser)) < 50
    assert "2480 modules" in browser.run("return document.querySelector('.sum').innerText")
    browser.run("document.querySelectorAll('.count').forEach(button => button.click())")
    assert browser.run("return document.querySelectorAll('tr.member:not([hidden])').length") == 2479
    assert browser.messages() == []


def test_a_report_is_a_page_of_what_is_held_and_expected(shown):
    model = lora_model()
    model.get_base_model().proj.lora_B["default"].to(torch.bfloat16)
    browser = shown(qlora_bf16_patch.report(model))
    heads = browser.run("return [...document.querySelectorAll('thead th')].map(head => head.innerText)")
    assert heads == ["module", "weight, compute", "stored in", "other parameters", "trained", "to expect"]
    assert cell(browser, f"{PROJ}.base_layer", 1)["said"] == "nf4 bf16"
    assert cell(browser, f"{PROJ}.base_layer", 2)["said"] == "uint8"
    assert cell(browser, f"{PROJ}.lora_B.default", 4)["said"] == "bf16"
    mismatch = cell(browser, f"{PROJ}.lora_B.default", 5)
    assert mismatch["width"] == 3 and "is float32 fp32 → bf16" in mismatch["said"]
    assert "Advice: " in mismatch["numbers"]
    assert browser.messages() == []


def test_without_its_script_all_is_there_to_read(shown, trained, browser, tmp_path):
    with browser.without_scripts():
        shown(trained)
        from selenium.webdriver.common.by import By

        text = browser.driver.find_element(By.TAG_NAME, "body").text
    assert "2 times · by peft.boundary" in text and "lora_A.default" in text
    assert "Filter" not in text and "only" not in text


def test_it_prints_in_light_colours_and_without_controls(shown, trained):
    browser = shown(trained, scheme="dark", media="print")
    assert browser.run("return getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(28, 32, 36)"
    assert browser.run("return getComputedStyle(document.querySelector('.chip')).printColorAdjust") == "exact"


def test_the_file_names_no_other():
    text = layers(2).to_html()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=", text)


def test_rows_are_a_tree_whatever_ran_first():
    dtypes = Dtypes(weight="nf4")
    seen = [Seen(path, "Linear", "one", dtypes, 1) for path in ("net.1.a", "net.0", "net.1", "tail", "net.0.a")]
    found = [(row.label, row.depth, row.within, len(row.members)) for row in rows(seen, ["one"])]
    assert found == [("net.[0-1]", 0, "", 2), ("a", 1, "", 2), ("tail", 0, "", 1)]


def test_a_mark_belongs_to_the_row_of_its_module_where_its_class_is_not_known():
    seen = [Seen("a", "Linear", "one", Dtypes(), 1), Seen("a", "", "two", Mark("refused", "no"))]
    (row,) = rows(seen, ["one", "two"])
    assert row.module == "Linear" and [mark.kind for mark in row.marks] == ["refused"]
