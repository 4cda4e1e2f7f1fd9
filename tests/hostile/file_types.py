"""What is no file in the place of one, and names of files that are no text."""

from __future__ import annotations

import os
from pathlib import Path

from tests.hostile.case import (
    EDIT,
    INSPECT,
    NO_FILES,
    TREE,
    Case,
    Harm,
    either,
    instead,
    passes,
    refused,
)

OF_THE_MODEL = ("config.json", "model.safetensors")
OF_THE_PROCESSOR: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
OF_THE_PROCESSOR += ("chat_template.jinja", "generation_config.json")


def beside(name: bytes | str, content: bytes = b"{}") -> Harm:
    """Another file in the checkpoint."""

    def harm(folder: Path) -> None:
        (folder / "ckpt" / os.fsdecode(name)).write_bytes(content)

    return harm


CASES: list[Case] = [
    *(
        refused(f"{kind} called {name}", instead(f"ckpt/{name}", make), "ckpt", INSPECT)
        for name in OF_THE_MODEL
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} called {name}", instead(f"ckpt/{name}", make), "ckpt|records.jsonl:1", EDIT)
        for name in OF_THE_PROCESSOR
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} called records.jsonl", instead("records.jsonl", make), "records", TREE)
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(
            f"{kind} called records.jsonl",
            instead("records.jsonl", make),
            "records",
            (*EDIT, "--records=records.jsonl"),
        )
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} called r.parquet", instead("r.parquet", make), "r.parquet", ("tree", "r.parquet"))
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} to keep", instead("keep.txt", make), "--keep", (*EDIT, "--keep=keep.txt"))
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} as the page", instead("p.html", make), "p.html", ("diff", "ckpt", "edited", "--html=p.html"))
        for kind, make in NO_FILES.items()
        if kind not in ("a dangling link",)
    ),
    *(
        refused(f"{kind} as the checkpoint", instead("c", make), "c: ", ("inspect", "c"))
        for kind, make in NO_FILES.items()
    ),
    *(
        refused(f"{kind} as the output", instead("o", make), "--out|o:", (*EDIT, "--out=o", "--overwrite"))
        for kind, make in NO_FILES.items()
        if kind in ("a pipe", "a device", "a circle")
    ),
    *(
        either(f"{kind} that nobody reads", instead("ckpt/notes", make), "ckpt", EDIT)
        for kind, make in NO_FILES.items()
    ),
    *(refused(f"a file called {name!r}", beside(name), "ckpt", EDIT) for name in (b"\xff\xfe", b"a\xc3.json")),
    *(
        either(f"a file called {name!r}", beside(name), "ckpt", EDIT)
        for name in ("[red]a", ":smile:", "a\nb", "\x1b[2J", "é", "e\u0301", "a b", "-rf", "~", "%s", "{0}")
    ),
    passes("a folder called [red]", lambda f: (f / "ckpt" / "[red]").mkdir()),
]
