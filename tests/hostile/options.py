"""Options of the command line: numbers that are none, far too large or too small, names of what there is not."""

from __future__ import annotations

from tests.hostile.case import EDIT, EVAL, TREE, Case, either, nothing, passes, refused

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "-1e-300", "x", "", " ", "0x10", "1_0", "٣", "9" * 5000, "1,5", "None")
SETTINGS = ("ridge", "retain-weight", "neighbor-weight", "max-retain-drop", "max-left")
SIZES = ("9" * 30, "0", "-1", "x", "", "1.5", "nan", "inf", "1e3", "9" * 5000, "²", "auto ", "None")
SEEDS = ("-1", "x", "", "1.5", "nan", "9" * 30, str(2**64), str(2**63), "9" * 5000)
DEVICES = ("cuda", "cuda:99", "mps", "tpu", "meta", "", "x", "cpu:x", "xla", "xpu", "hpu", "cpu:-1", "[red]")
LAYERS: tuple[str, ...] = (
    "-1",
    "99",
    "3-1",
    "0-99",
    "x",
    "",
    "%",
    "0%-0%",
    "200%-300%",
    "0-999999999999",
    "9" * 5000,
    "0,1",
    "all ",
)
LAYERS += ("-", "1-", "-1-2", "50%", "1e9%-2e9%", f"{'9' * 400}%-100%", "٣-٤", "0%-1e1%")
KINDS = ("", ",", "x", "q,", "Q", "q,x", "vision.q", "connector,connector", "q;k", "*", "[red]")
ATTACKS = ("x", "all,x", "ALL", "[red]")
FOUND = tuple(part for part in EDIT if part not in ("--retain-weight", "8"))
MAPS = ("x", "", "auto ", "{}", "cpu:99", "disk", '{"": "x"}')


def option(name: str, value: str, *more: str) -> tuple[str, ...]:
    """The edit with one option more; it may be there already, and the last one counts."""
    return (*EDIT, f"--{name}={value}", *more)


CASES: list[Case] = [
    *(
        either(f"--{name} {number[:20]!r}", nothing, f"--{name}", option(name, number))
        for name in SETTINGS
        for number in NUMBERS
    ),
    *(
        either(f"--{name} {number}", nothing, f"--{name}|ridge|changes nothing", option(name, number))
        for name in ("ridge", "retain-weight")
        for number in ("0", "1e-300", "1e300", "1e38", "1e-30")
    ),
    *(
        refused(f"--{name} {number}", nothing, f"--{name}", (*FOUND, f"--method={method}", f"--{name}={number}"))
        for method, names in (("gated", ("closed", "max-change", "units", "views")), ("shielded", ("max-general-kl",)))
        for name in names
        for number in ("1e308", "1e39", "-1e308")
    ),
    *(refused(f"--batch-size {size[:20]!r}", nothing, "--batch-size", option("batch-size", size)) for size in SIZES),
    *(passes(f"--batch-size {size}", nothing, option("batch-size", size)) for size in ("1", "007", "10" * 9)),
    *(refused(f"--seed {seed[:20]!r}", nothing, "--seed", (*EVAL, f"--seed={seed}")) for seed in SEEDS),
    passes("--seed 2³²", nothing, (*EVAL, f"--seed={2**32}")),
    *(refused(f"--rank {rank!r}", nothing, "--rank", option("rank", rank)) for rank in ("0", "-1", "1e3", "")),
    *(passes(f"--rank {rank[:9]}", nothing, option("rank", rank)) for rank in ("1", "9" * 300)),
    *(refused(f"--device {device!r}", nothing, "--device", option("device", device)) for device in DEVICES),
    *(refused(f"--device {device!r}", nothing, "--device", (*EVAL, f"--device={device}")) for device in DEVICES[:5]),
    *(refused(f"--layers {layers[:20]!r}", nothing, "--layers", option("layers", layers)) for layers in LAYERS),
    *(
        refused(f"--target-modules {kinds!r}", nothing, "--target-modules", option("target-modules", kinds))
        for kinds in KINDS
        if kinds not in ("connector,connector",)
    ),
    *(
        either(f"--target-modules {kinds!r}", nothing, "--target-modules", option("target-modules", kinds))
        for kinds in ("connector,connector", "up,up")
    ),
    *(
        refused(f"--attacks {attacks!r}", nothing, "attacks|attack", (*EVAL, f"--attacks={attacks}"))
        for attacks in ATTACKS
    ),
    *(
        refused(f"--depth {depth!r}", nothing, "--depth", (*TREE, f"--depth={depth}"))
        for depth in ("0", "5", "-1", "x", "", "9" * 5000)
    ),
    *(
        refused(
            f"--device-map {value!r}",
            nothing,
            "--device",
            ("edit", "ckpt", "--forget", "patient_1", "--force", f"--device-map={value}"),
        )
        for value in MAPS
    ),
    *(
        refused(f"--forget {node[:20]!r}", nothing, "--forget", (*EDIT, f"--forget={node}"))
        for node in ("", "/", "//", "a" * 5000, "institution_1/", "*", "\udcff")
    ),
    refused("everybody", nothing, "nothing would be left", (*EDIT, "--forget=institution_1", "--forget=institution_2")),
    *(
        refused(f"--label {label!r}", nothing, "--label", option("label", label))
        for label in ("patient_1", "a\udcff", "a\x1b[2Jb", "a\nb")
    ),
    *(
        refused(f"--out {out[:20]!r}", nothing, "--out|/proc", option("out", out))
        for out in (
            "ckpt",
            "ckpt/inner",
            ".",
            "records.jsonl",
            "records.jsonl/a",
            "/dev/null",
            "/proc/a",
            "a" * 300,
            "a\udcff/../ckpt",
        )
    ),
    *(
        refused(f"--records {file[:20]!r}", nothing, "none|records|ckpt|images|dev|config", option("records", file))
        for file in ("none.jsonl", "ckpt", "images", "/dev/null", "/dev/zero", "")
    ),
    *(
        refused(f"--keep {file[:20]!r}", nothing, "--keep|ckpt", option("keep", file))
        for file in ("none.txt", "ckpt", "/dev/null", "/dev/zero", "", "a" * 300)
    ),
    *(
        refused(f"--general {file!r}", nothing, "--general", (*EVAL, f"--general={file}"))
        for file in ("none.txt", "ckpt", "/dev/zero", "")
    ),
    *(
        refused(f"{name}={value[:9]!r} in the environment", nothing, name, EDIT, environment={name: value})
        for name, value in (
            ("WORLD_SIZE", "x"),
            ("WORLD_SIZE", "0"),
            ("RANK", "x"),
            ("RANK", "-1"),
            ("RANK", "9" * 5000),
        )
    ),
    refused("nobody to meet", nothing, "other processes", EDIT, environment={"WORLD_SIZE": "2", "RANK": "0"}),
    passes("a terminal of one column", nothing, TREE, environment={"COLUMNS": "1"}),
    passes("a terminal of x columns", nothing, TREE, environment={"COLUMNS": "x", "LINES": "-1"}),
    refused("an option that there is not", nothing, "--nonesuch", (*EDIT, "--nonesuch=1")),
    refused("an option without its value", nothing, "--seed", (*EVAL, "--seed")),
    refused("a value for a flag", nothing, "--force", (*EDIT, "--force=1")),
    refused("an argument too many", nothing, "argument", (*EDIT, "another")),
    refused("no checkpoint", nothing, "CKPT", ("edit", "--forget", "patient_1")),
    refused("nobody to forget", nothing, "--forget", ("edit", "ckpt")),
    refused("a command that there is not", nothing, "nonesuch", ("nonesuch",)),
    refused("a command with an order in it", nothing, "red", ("[red]\x1b[2J",)),
    refused("--judge without a model", nothing, "--judge", (*EVAL, "--judge=http://localhost:1")),
    refused("--show-names without a page", nothing, "--show-names", (*EVAL, "--show-names")),
    *(
        refused(f"--html {page[:20]!r}", nothing, "p|ckpt|/dev|none", ("diff", "ckpt", "edited", f"--html={page}"))
        for page in ("ckpt", "none/p.html", "a" * 300, "/dev/full", "/proc/p.html", "")
    ),
]
