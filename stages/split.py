"""Stage split: see `carseg.split.write_split`."""

from pathlib import Path

from carseg.errors import hold_interrupts, run


def main() -> None:
    with hold_interrupts():
        from carseg.pairs import find_pairs
        from carseg.params import load_params

    params = load_params()  # a fault in it is told before the rest takes seconds to import
    pairs = find_pairs(Path("dataset/Image"), Path("dataset/Mask"))
    with hold_interrupts():
        from carseg.split import write_split

    write_split(pairs, params.split, params.seed, Path("split"))


if __name__ == "__main__":
    run(main)
