"""What the driver's cases give: a digest each, kept in digests.txt.

python tests/native/digests.py            compares this machine's instruction sets with it
python tests/native/digests.py --write    writes it: a kernel's arithmetic or a case changed
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FILE = Path(__file__).with_name("digests.txt")


def expected() -> dict[str, str]:
    """Case -> digest, as the file has them."""
    return dict(line.split() for line in FILE.read_text().splitlines())


def run_driver(
    driver: Path, library: Path, num_threads: int, *, under: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """Instruction set -> case -> digest. under: the emulator that runs it."""
    done = subprocess.run(
        [*under, str(driver), str(library), str(num_threads)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, f"the driver failed with {done.returncode}:\n{done.stderr}"
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        instruction_set, case, digest = line.split()
        found.setdefault(instruction_set, {})[case] = digest
    return found


def main() -> int:
    """Compare or write; 1 where instruction sets disagree with each other or with the file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from native.compiled import compiled_program, library_file

    found = run_driver(compiled_program("driver", ["driver.cpp"]), library_file(), 2)
    first = next(iter(found.values()))
    different = [name for name, digests in found.items() if digests != first]
    if different:
        print(f"{', '.join(different)} and {next(iter(found))} give different bits: {found}")
        return 1
    if sys.argv[1:] == ["--write"]:
        FILE.write_text("".join(f"{case} {digest}\n" for case, digest in first.items()))
        return 0
    changed = [case for case in {**expected(), **first} if expected().get(case) != first.get(case)]
    print(f"other bits than the file's: {', '.join(changed) or 'none'}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
