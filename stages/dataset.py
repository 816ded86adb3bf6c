"""Stage dataset: see `carseg.dataset.snapshot`."""

from pathlib import Path

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.recorded import Recorded

    recorded = Recorded("dataset")
    with hold_interrupts():
        from carseg.dataset import snapshot

    pairs = snapshot(Path("."), Path("dataset"))
    print(f"dataset: {len(pairs)} pairs")
    recorded.check()


if __name__ == "__main__":
    run(main)
