"""``python -m tests.versions.without_gpu``: lets a torch that was installed without its dependencies run on a CPU.

The registry has older releases as builds for CUDA alone, which ask for gigabytes of NVIDIA's libraries. Without a GPU
none of these is called but the runtime, with which torch registers its kernels at its import: that one is installed.
In the place of each other one the loader finds an empty library. A build for CPUs is left as it is.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distribution
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
# What the loader says is missing: a library, or a function that is asked for by its address.
LIBRARY = re.compile(r"(lib\S+\.so\S*): cannot open shared object file")
FUNCTION = re.compile(r"undefined symbol: (\w+)")


def main() -> None:
    runtime = [one for one in distribution("torch").requires or () if one.startswith("nvidia-cuda-runtime")]
    if runtime:
        only_what_runs_on_a_cpu()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "torch", *runtime], check=True)
    if runtime:
        # Functions that are never called are never looked for; Python would look for all of them.
        (SITE / "lazily.pth").write_text("import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n")
        fill_in()


def only_what_runs_on_a_cpu() -> None:
    """Take NVIDIA's and Triton's packages out of what torch asks for, so that pip finds nothing missing."""
    (metadata,) = SITE.glob("torch-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines(keepends=True)
    metadata.write_text("".join(line for line in lines if not re.match("Requires-Dist: (cuda|nvidia|triton)", line)))


def fill_in() -> None:
    """Give the loader what it misses, one by one, until torch can be imported."""
    libraries, functions = set[str](), set[str]()
    while error := importing():
        if found := LIBRARY.search(error):
            libraries.add(found[1])
        elif found := FUNCTION.search(error):
            functions.add(found[1])
        else:
            sys.exit(error)
        for name in libraries:
            make(name, functions)


def importing() -> str:
    result = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


def make(library: str, functions: set[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write("".join(f"void {name}(void) {{}}\n" for name in sorted(functions)))
        source.flush()
        # A function that is asked for in a version, is asked for in that which is called as its library.
        options = ("-shared", "-fPIC", f"-Wl,-soname,{library}", "-Wl,--default-symver")
        subprocess.run(["cc", *options, "-o", SITE / "torch/lib" / library, source.name], check=True)


if __name__ == "__main__":
    main()
