"""``qlora-bf16-patch run``: a program of somebody else's is what it was, with the shim on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qlora_bf16_patch
from qlora_bf16_patch.patches import CATALOGUE

from .starting import start

PATCHED = "import torch, sys; print('qlora_bf16_patch' in sys.modules)"
SEEN = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__, "file": __file__}))
"""


def test_arguments_main_path_and_folder_are_the_programs_own(script, tmp_path):
    file = script(SEEN)
    plain = start(file, "--strict", "-x", command=[sys.executable], cwd=tmp_path)
    result = start(file, "--strict", "-x", cwd=tmp_path)
    assert json.loads(result.stdout) == json.loads(plain.stdout)
    assert json.loads(result.stdout)["argv"][1:] == ["--strict", "-x"]
    assert not result.stderr


@pytest.mark.parametrize("program", [("-m", "program"), ("program.py",)], ids=["module", "file"])
def test_the_shim_is_on_and_told_at_the_end(script, tmp_path, program):
    script(PATCHED)
    result = start(*program, cwd=tmp_path)
    assert result.stdout == "True\n", result.stderr
    assert result.stderr.splitlines()[-1].endswith("no k-bit model was seen here")


def test_a_program_that_never_imports_torch_does_not_import_the_shim(script):
    result = start(script("import sys; print('qlora_bf16_patch' in sys.modules, 'wrapt' in sys.modules)"))
    assert result.stdout == "False False\n"
    assert not result.stderr


def test_a_python_that_never_imports_torch_imports_next_to_nothing_more(script):
    file = script("import sys; print(*sys.modules)")
    plain, found = (set(start(file, command=command).stdout.split()) for command in ([sys.executable], None))
    more = {name for name in found - plain if not name.startswith("importlib")}
    assert more == {"sitecustomize", "_qlora_bf16_patch_children"}


def test_streams_and_exit_status_are_its_own(script):
    result = start(script("import sys; print(input()); sys.stderr.write('err'); sys.exit(7)"))
    assert (result.stdout, result.stderr, result.returncode) == ("in\n", "err", 7)


def test_a_signal_reaches_it(script):
    result = start(script("import os, signal; os.kill(os.getpid(), signal.SIGTERM)"))
    assert result.returncode == -signal.SIGTERM


def test_a_sitecustomize_that_was_there_still_runs(script, tmp_path):
    script("import sys; sys.there = True", "sitecustomize.py")
    file = script("import sys; print(sys.there, sys.modules['sitecustomize'].__file__)")
    result = start(file, PYTHONPATH=str(tmp_path))
    assert result.stdout == f"True {tmp_path / 'sitecustomize.py'}\n"


def test_the_folder_of_another_installation_stands_behind_it(script, tmp_path):
    other = tmp_path / "bootstrap"
    shutil.copytree(Path(qlora_bf16_patch.__file__).parent / "bootstrap", other)
    result = start(script("import sys; print(sys.path)"), PYTHONPATH=str(other))
    assert "bootstrap" not in result.stdout
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_its_children_have_the_shim_on(script, method):
    file = script(
        f"""
        import multiprocessing, sys

        def child(queue):
            import torch
            queue.put("qlora_bf16_patch" in sys.modules)

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            print(queue.get())
            process.join()
        """
    )
    assert start(file).stdout == "True\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("given", [True, False])
def test_a_worker_of_multiprocessing_that_cannot_have_it_is_told(script, method, given):
    file = script(
        f"""
        import multiprocessing, os

        def child():
            import torch, sys
            print("qlora_bf16_patch" in sys.modules)

        if __name__ == "__main__":
            if not {given}:
                del os.environ["PYTHONPATH"]
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
        """
    )
    result = start(file)
    assert result.stdout == f"{given}\n", result.stderr
    assert result.stderr.count("is started with another PYTHONPATH: the shim is not on in it") == (not given)


def test_a_forked_worker_tells_nothing_where_it_loads_data_alone(script):
    file = script(
        """
        import torch
        data = torch.utils.data.DataLoader(range(4), num_workers=2, multiprocessing_context="fork")
        print(sum(data).item())
        """
    )
    result = start(file)
    assert result.stdout == "6\n"
    assert result.stderr.count("no k-bit model was seen here") == 1


def test_quiet_leaves_out_the_last_line_in_every_process_but_not_what_is_wrong(script, tmp_path):
    file = script("import subprocess, sys, torch; subprocess.run([sys.executable, '-c', 'import torch'])")
    assert not start(file, options=["--quiet"]).stderr
    (tmp_path / "bitsandbytes" / "nn").mkdir(parents=True)
    for name in ("__init__.py", "nn/__init__.py", "nn/modules.py"):
        (tmp_path / "bitsandbytes" / name).touch()
    result = start(script("import bitsandbytes.nn.modules"), options=["--quiet"])
    assert "bitsandbytes.linear4bit is failed: " in result.stderr


def test_the_last_line_is_on_standard_error_where_the_program_has_another_one(script):
    result = start(script("import io, sys, torch; sys.stderr = io.StringIO()"))
    assert result.stderr.endswith("no k-bit model was seen here\n")


def test_where_all_is_off_nothing_is_said_of_models(script):
    result = start(script("import torch"), options=["--disable", "*"])
    assert result.stderr.endswith("no k-bit model was taken in: every patch is off\n")


def test_a_command_of_this_python_is_found_and_patched(tmp_path):
    result = start("torchrun", "--help")
    assert result.returncode == 0
    assert "no k-bit model was seen here" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launchers_signals_and_exit_status_are_its_own(script, tmp_path, number):
    script(
        """
        import os, pathlib, time, torch
        pathlib.Path(f"{os.environ['RUN']}.{os.environ['RANK']}").write_text(str(os.getpid()))
        time.sleep(300)
        """
    )
    statuses = []
    for name, command in (("plain", ["-m"]), ("run", ["-m", "qlora_bf16_patch", "run", "-m"])):
        program = [sys.executable, *command, "torch.distributed.run", "--nproc-per-node", "2", "program.py"]
        files = [tmp_path / f"{name}.{rank}" for rank in range(2)]
        environ = {**os.environ, "RUN": name}
        with subprocess.Popen(program, cwd=tmp_path, env=environ, stdout=-1, stderr=subprocess.STDOUT) as process:
            while not all(file.exists() and file.read_text() for file in files):
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.1)
            process.send_signal(number)
            process.communicate(timeout=300)
        statuses.append(process.returncode)
        for file in files:
            with pytest.raises(ProcessLookupError):
                os.kill(int(file.read_text()), 0)
    assert statuses[0] == statuses[1] != 0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("subprocess.run([sys.executable, '-I', '-c', ''])", "runs isolated"),
        ("subprocess.run([sys.executable, '-sE', '-c', ''])", "runs isolated"),
        ("subprocess.run([sys.executable, '-c', ''], env={})", "another PYTHONPATH"),
        ("os.execve(sys.executable, [sys.executable, '-c', ''], {})", "another PYTHONPATH"),
        ("os.environ.pop('PYTHONPATH'); subprocess.run([sys.executable, '-c', ''])", "another PYTHONPATH"),
        (
            "os.environ.pop('PYTHONPATH'); subprocess.run([sys.executable, '-c', ''], env=os.environ)",
            "another PYTHONPATH",
        ),
        ("subprocess.run(['other'], executable=sys.executable, env={}, input=b'')", "another PYTHONPATH"),
        ("subprocess.run([sys.executable, '-W', 'ignore', '-I', '-c', ''])", "runs isolated"),
        ("subprocess.run([sys.executable, '-I', '-c', ''], close_fds=False)", "runs isolated"),
        ("os.posix_spawn(sys.executable, ['python', '-I', '-c', ''], os.environ); os.wait()", "runs isolated"),
        ("os.execvp('python', ['python', '-I', '-c', ''])", "runs isolated"),
        (
            "subprocess.run(['torchrun', '--help'], env={'PATH': os.environ['PATH']}, stdout=subprocess.DEVNULL)",
            "another PYTHONPATH",
        ),
        ("subprocess.run([sys.executable, '-c', ''], env=os.environb)", ""),
        ("subprocess.run([sys.executable, '-Wdefault::ImportWarning', '-c', ''])", ""),
        ("subprocess.run([sys.executable, '-ucEIS=1'])", ""),
        ("subprocess.run([sys.executable, '-c', 'pass', '-I'])", ""),
        ("subprocess.run(['env'], env={}, stdout=subprocess.DEVNULL)", ""),
    ],
)
def test_a_child_that_cannot_have_it_is_told(script, call, told):
    beside = os.pathsep.join(["/nonexistent", str(Path(sys.executable).parent), os.environ["PATH"]])
    result = start(script(f"import os, subprocess, sys; {call}"), PATH=beside)
    assert result.returncode == 0
    assert (told in result.stderr) if told else not result.stderr
    assert result.stderr.count("the shim is not on in it") == bool(told)


@pytest.mark.parametrize("options", ["-I", "-S"])
def test_a_program_that_is_isolated_itself_is_told(script, options):
    assert "runs isolated" in start(sys.executable, options, script("")).stderr
    command = script(f"#!{sys.executable} {options}\n", "command")
    command.chmod(0o755)
    assert "runs isolated" in start(command).stderr


def test_a_program_without_a_stderr_starts_children_as_ever(script):
    file = script(
        """
        import subprocess, sys
        if sys.stderr is not None:
            sys.stderr.close()
        isolated = [sys.executable, "-I", "-c", "import sys; sys.exit(5)"]
        print(subprocess.run(isolated, stderr=subprocess.DEVNULL).returncode)
        """
    )
    assert start(file).stdout == "5\n"
    shell = f"exec {sys.executable} -m qlora_bf16_patch run {file} 2>&-"
    result = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True, timeout=300)
    assert (result.stdout, result.returncode) == ("5\n", 0)


def test_the_signals_that_python_ignores_are_not_ignored_in_a_program_that_is_no_python():
    command = ["grep", "SigIgn", "/proc/self/status"]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert start(*command).stdout == plain.stdout


def test_a_folder_with_a_commands_name_is_not_taken_for_it(script, tmp_path):
    (tmp_path / "torchrun").mkdir()
    (tmp_path / "torchrun" / "__main__.py").write_text("print('folder')")
    assert "folder" not in start("torchrun", "--help", cwd=tmp_path).stdout
    assert start("./torchrun", cwd=tmp_path).stdout == "folder\n"


def test_a_file_that_cannot_be_executed_is_a_script_of_this_python(script, tmp_path):
    script("print(__file__)", "train")
    assert start("train", cwd=tmp_path).stdout == f"{tmp_path / 'train'}\n"


def test_a_patch_of_a_third_party_can_be_named(script, tmp_path):
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[qlora_bf16_patch.patches]\nfake.layer = third_party:PATCH\n")
    result = start(script("print('ran')"), options=("--disable", "fake.layer"), PYTHONPATH=str(tmp_path))
    assert result.stdout == "ran\n", result.stderr


def test_a_finder_around_ours_breaks_no_import(script):
    file = script(
        """
        import sys

        class Around:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

        sys.meta_path[:] = map(Around, sys.meta_path)
        import torch
        print("qlora_bf16_patch" in sys.modules)
        """
    )
    result = start(file)
    assert result.stdout == "True\n", result.stderr


@pytest.mark.parametrize("switch", ["1", "0"])
def test_no_other_finder_is_left_out(script, switch):
    file = script(
        """
        import importlib.util, sys

        class Other:
            def __init__(self, place):
                self.place = place

            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    asked.add(self.place)

        asked = set()
        sys.meta_path[1:1] = map(Other, range(3))
        importlib.util.find_spec("torch")
        print(asked)
        """
    )
    assert start(file, QLORA_BF16_PATCH=switch).stdout == "{0, 1, 2}\n"


def test_options_reach_it(script):
    file = script("import torch, qlora_bf16_patch as q; print([row.name for row in q.status() if row.state == 'off'])")
    options = ("--enable", "transformers.generate", "--disable", "peft.*", "--log", "info")
    result = start(file, options=options, QLORA_BF16_PATCH_DISABLE="bitsandbytes.linear8bit")
    off = [
        patch.name
        for patch in CATALOGUE
        if patch.name != "transformers.generate"
        and (not patch.default or patch.name.startswith("peft.") or patch.name == "bitsandbytes.linear8bit")
    ]
    assert result.stdout == f"{off}\n", result.stderr


@pytest.mark.parametrize(
    ("options", "program", "status", "told"),
    [
        ((), ("nowhere.py",), 127, "there is no file 'nowhere.py'"),
        ((), ("no-such-command",), 127, "there is no command 'no-such-command' on PATH"),
        ((), (), 2, "which program?"),
        (("--enable", "peft.bondary"), ("-m", "this"), 2, "Did you mean 'peft.boundary'?"),
        (("--disable", "peft.tuners, lora"), ("-m", "this"), 2, "error: argument --disable: 'lora' is not known."),
        (("--log", "loud"), ("-m", "this"), 2, "invalid choice"),
    ],
)
def test_bad_input_is_told_and_nothing_is_started(options, program, status, told):
    result = start(*program, options=options)
    assert result.returncode == status
    assert told in result.stderr
    assert not result.stdout


def test_the_report_is_mended_in_an_unmodified_program():
    example = Path(__file__).parents[1] / "examples" / "generate_in_callback.py"
    result = start(example)
    assert result.stdout.count("generated") == 3, result.stderr
    assert "1 k-bit model; casts in 1 module" in result.stderr


def test_nothing_is_left_on_disk(script, tmp_path):
    file = script(PATCHED)
    before = sorted(tmp_path.rglob("*"))
    start(file, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
