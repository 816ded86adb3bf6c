"""Stage dataset: see `carseg.dataset.snapshot`."""

from pathlib import Path

from carseg.errors import run


def main() -> None:
    from carseg.dataset import snapshot

    pairs = snapshot(Path("."), Path("dataset"))
    print(f"dataset: {len(pairs)} pairs")


if __name__ == "__main__":
    run(main)
