"""Two runs beside each other as text: what differs, each case, what changed, and the count of verdicts."""

from collections import Counter

from hpml import tables
from hpml.agreement import Agreement, Gain, Pair
from hpml.compare import percent

ONE_SIDED = ("only in A", "only in B", "in neither")


def text(found: Agreement, *, every: bool = True) -> str:
    """The whole comparison; `every=False` leaves out the cases without a difference."""
    first = f"A = {found.a.name} ({len(found.a.records)} records), B = {found.b.name} ({len(found.b.records)} records)"
    if found.unlike:
        first = f"{'; '.join(found.unlike)}: a difference need not be the code's. {first}"
    lines = [first, *(f"differs in {line}" for line in found.differs or ["nothing: the same commit, versions, data and machine"])]
    lines += [*basis(found), ""]
    both = [pair for pair in found.pairs if pair.verdict not in ONE_SIDED]
    shown = [pair for pair in both if every or pair.regression or pair.verdict not in ("no difference", "done") or pair.changes]
    lines += _table(shown) if shown else ["no case is in both runs" if not both else "no case differs"]
    for pair in shown:
        lines += [f"{name(pair)}: {change}" for change in pair.changes]
    lines += one_sided(found)
    if found.gains:
        lines += ["", *gains(found.gains, every=every)]
    return "\n".join([*lines, "", summary(found)])


def basis(found: Agreement) -> list[str]:
    """What the verdicts rest on."""
    lines = [f"floor between runs, {tables.PHASES.get(phase, phase)}: {percent(floor)}, from {words}"
             for phase, (floor, words) in sorted(found.floors.items()) if any(pair.ratio and pair.phase == phase for pair in found.pairs)]
    if lines:
        lines.insert(0, f"intervals at {100 * found.confidence:.4g} % each (Welch, rounds are not paired): 95 % for all cases together")
    if found.limits_shift:
        lines.append(f"the machine's measured limits, B / A: {tables.ratio(found.limits_shift)} (median)")
    return lines


def name(pair: Pair | Gain, among: list | None = None) -> str:
    """A case in words; without its workload where all of `among` have the same one."""
    workload = "" if among and len({other.workload for other in among}) == 1 else f"{tables.title(pair.workload)} "
    return f"{workload}{tables.PHASES.get(pair.phase, pair.phase)}, {pair.label}"


def _table(pairs: list[Pair]) -> list[str]:
    cells = {
        "case": [name(pair) for pair in pairs],
        "A samples/s": [tables.figure(pair.per_s[0]) for pair in pairs],
        "B samples/s": [tables.figure(pair.per_s[1]) for pair in pairs],
        "B / A": [tables.ratio(pair.ratio) for pair in pairs],
        "interval": [f"[{pair.low:.2f}, {pair.high:.2f}]" if pair.low is not None else "" for pair in pairs],
        "rounds": [f"{pair.rounds[0]} + {pair.rounds[1]}" if any(pair.rounds) else "" for pair in pairs],
        "verdict": [pair.text for pair in pairs],
        "quality": [pair.quality_text for pair in pairs],
    }
    return tables.grid({title: texts for title, texts in cells.items() if any(texts)})


def one_sided(found: Agreement) -> list[str]:
    """What only one of the two runs has, in a line for each kind."""
    lines = []
    for word in ONE_SIDED:
        own = [f"{name(pair)}{pair.text.removeprefix(word).replace('; ', ': ')}" for pair in found.pairs if pair.verdict == word]
        lines += [f"{word} ({len(own)}): {'; '.join(own[:6])}{' and more' if len(own) > 6 else ''}"] if own else []
    return lines


def gains(found: list[Gain], *, every: bool = True) -> list[str]:
    """Each technique's ratio to its baseline in both runs: these are paired, and may be compared between machines too. `every=False`:
    only those with another verdict."""
    shown = [gain for gain in found if every or gain.words[0] != gain.words[1]]
    same = sum(gain.words[0] == gain.words[1] for gain in found)
    cells = {"technique": [name(gain) for gain in shown], "in A": [tables.ratio(gain.ratios[0]) for gain in shown],
             "in B": [tables.ratio(gain.ratios[1]) for gain in shown],
             "verdicts": [gain.words[0] if gain.words[0] == gain.words[1] else f"{gain.words[0]}, then {gain.words[1]}" for gain in shown]}
    lines = tables.grid(cells) if shown else []
    return [f"techniques beside their baselines, paired inside each run: the same verdict in {same} of {len(found)}", *lines]


def summary(found: Agreement) -> str:
    """One line: verdicts counted, and whether B is worse anywhere."""
    count = Counter(pair.verdict for pair in found.pairs)
    count.update(f"quality {pair.quality}" for pair in found.pairs if pair.quality in ("lost", "better"))
    words = ", ".join(f"{n} {word}" for word, n in count.items()) or "nothing to compare"
    why = [pair.verdict if pair.verdict in ("slower", "broken") else "quality lost" for pair in found.regressions]
    worse = "; ".join(f"{name(pair)} ({word})" for pair, word in zip(found.regressions, why, strict=True))
    return f"{words}. {'Worse in B: ' + worse if worse else 'Nothing is worse in B beyond the noise'}."
