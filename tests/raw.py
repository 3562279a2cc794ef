"""Raw releases made up: Ali-CCP and AliExpress as they are published, and with what can be wrong about such files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

SINGLE = ("121", "122", "101", "124", "125", "126", "127", "128", "129")
LISTS = {"150_14": 150, "127_14": 120, "109_14": 60, "110_14": 180}  # with their mean lengths
WEIGHTS = ("0.69315", "1.09861", "1.38629", "1.60944", "1.79176", "2.70805")
ID = 9_000_000


def features(triples: list[tuple[str, object, object]]) -> str:
    return "\x01".join(f"{field}\x02{id}\x03{weight}" for field, id, weight in triples)


@dataclass
class AliCcp:
    """A split: `rows` impressions in runs of about `run` of one user; lists `scale` times as long as the real ones.

    faults: the share of lines that are damaged in some way; 0 is a clean release.
    """

    rows: int
    seed: int = 0
    run: int = 58
    scale: float = 1.0
    faults: float = 0.0
    end: str = "\n"
    shuffled: bool = False
    ctr: float = 0.0389
    cvr: float = 0.0054

    def write(self, folder: Path, split: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        random_ = random.Random(f"{self.seed} {split}")
        keys = [f"{random_.getrandbits(64):016x}" for _ in range(max(1, self.rows // self.run))]
        keys = [random_.choice(keys) if random_.random() < self.faults / 4 else key for key in keys]
        with (folder / f"common_features_{split}.csv").open("w", newline="", encoding="latin-1") as file:
            for key in keys:
                file.write(self._damaged(f"{key},{self._user(random_)}", random_) + self.end)
        with (folder / f"sample_skeleton_{split}.csv").open("w", newline="", encoding="latin-1") as file:
            for row in range(self.rows):
                key = random_.choice(keys) if self.shuffled else keys[min(row // self.run, len(keys) - 1)]
                if random_.random() < self.faults / 4:
                    key = "0" * 15 + "g"  # that the other file lacks
                head = f"{row + 1},{self._labels(random_)},{key}"
                file.write(self._damaged(f"{head},{self._item(random_)}", random_) + self.end)

    def _labels(self, random_: random.Random) -> str:
        click = random_.random() < self.ctr
        conversion = random_.random() < (self.cvr if click else self.faults / 10)
        return f"{int(click)},{int(conversion)}"

    def _user(self, random_: random.Random) -> str:
        found: list[tuple[str, object, object]] = [
            (field, random_.randrange(ID), "1.0") for field in SINGLE if random_.random() < 0.95
        ]
        for field, mean in LISTS.items():
            for _ in range(random_.randrange(int(2 * mean * self.scale) + 1)):
                found.append((field, min(ID, int(random_.paretovariate(0.5))), random_.choice(WEIGHTS)))
        return f"{len(found)},{features(found)}"

    def _item(self, random_: random.Random) -> str:
        found = [(field, random_.randrange(ID), "1.0") for field in ("216", "301", "205", "206", "207")]
        found += [("210", random_.randrange(ID), "1.0") for _ in range(random_.randrange(12))]
        found += [
            (f, random_.randrange(ID), random_.choice(WEIGHTS)) for f in ("508", "509", "702") if random_.random() < 0.4
        ]
        found += [
            ("853", random_.randrange(ID), random_.choice(WEIGHTS)) for _ in range(max(0, random_.randrange(5) - 1))
        ]
        random_.shuffle(found)
        return f"{len(found)},{features(found)}"

    def _damaged(self, line: str, random_: random.Random) -> str:
        """A line, or with the probability `faults` one of the things that can be wrong with it."""
        if random_.random() >= self.faults:
            return line
        head, _, tail = line.rpartition(",")
        return random_.choice(
            [
                "",
                "\xff\xfe, not text",
                line[: random_.randrange(len(line))],
                f"{head},",
                f"{line},",
                f"x{line}" if line[0].isdigit() and head.count(",") == 4 else f",{line}",
                f"{head},101\x02\x031.0",
                f"{head},101\x025",
                f"{head},101\x02five\x031.0",
                f"{head},101\x025\x03one",
                f"{head},101\x02{10**19}\x031.0",
                f"{head},\x01{tail}",
                f"{head},{tail}\x01",
                f"{head},{tail}\x01205\x027\x031.0\x01101\x028\x031.0",
                f"{head},{tail}\x01205\x027\x030.5\x01101\x028\x031E-3",
                f"{head},{tail}\x01999\x027\x031\x01210\x028\x032",
                f"{head},{tail}\x01508\x027\x0310\x01508\x028\x032",
            ]
        )


@dataclass
class AliExpress:
    """One country: searches of about `run` impressions each. faults: as above, for numbers with commas between them."""

    rows: int
    seed: int = 0
    run: int = 12
    faults: float = 0.0
    end: str = "\n"

    def write(self, folder: Path, split: str, country: str = "nl") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        random_ = random.Random(f"{self.seed} {split} {country}")
        searches = random_.sample(range(10**9), max(1, self.rows // self.run))
        with (folder / f"{country}_user_{split}.csv").open("w", newline="") as file:
            for search in searches:
                numbers = [self._number(random_) for _ in range(23)]
                cells = [search, *self._categories(random_, 7), *numbers, *self._categories(random_, 2)]
                file.write(self._damaged(cells, random_) + self.end)
        with (folder / f"{country}_item_{split}.csv").open("w", newline="") as file:
            for row in range(self.rows):
                search = searches[min(row // self.run, len(searches) - 1)]
                if random_.random() < self.faults / 4:
                    search = 10**12
                cells = [search, *(self._number(random_) for _ in range(47)), random_.choices([0, 1, 2], [90, 8, 2])[0]]
                for column in (19, 34, 35, 36, 40, 41, 42):
                    cells[column - 1] = self._categories(random_, 1)[0]
                file.write(self._damaged(cells, random_) + self.end)

    def _categories(self, random_: random.Random, number: int) -> list[object]:
        return [random_.choice([random_.randrange(50), random_.randrange(10**6), 0]) for _ in range(number)]

    def _number(self, random_: random.Random) -> object:
        return random_.choice([0.0, 1.0, round(random_.random(), 6), -round(random_.random(), 3), "1.5E-4"])

    def _damaged(self, cells: list[object], random_: random.Random) -> str:
        line = ",".join(map(str, cells))
        if random_.random() >= self.faults:
            return line
        place = random_.randrange(1, len(cells) - 1)
        texts = [str(cell) for cell in cells]
        return random_.choice(
            [
                "",
                f"{line},1",
                ",".join(texts[:-1]),
                ",".join([*texts[:-1], "3"]),
                ",".join(["a", *texts[1:]]),
                ",".join([*texts[:place], "x", *texts[place + 1 :]]),
                ",".join([*texts[:place], "", *texts[place + 1 :]]),
                ",".join([*texts[:1], "3.0", *texts[2:]]),
            ]
        )
