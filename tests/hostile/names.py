"""What names the target in the checkpoint's folder, however it is written, and what only looks like it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from urllib.parse import quote

from safetensors.torch import load_file, save_file

from tests.hostile.case import EDIT, Case, Harm, both, passes, put, refused

AT = "ckpt/.* names (patient_1|study_1), which is to be forgotten"


def holds(name: str, text: str, encoding: str = "utf-8") -> Harm:
    """A file of this text beside the weights."""

    def harm(folder: Path) -> None:
        file = folder / "ckpt" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode(encoding))

    return harm


def _metadata(folder: Path) -> None:
    file = folder / "ckpt" / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "run": "/data/patient_1"})


def _comment(folder: Path) -> None:
    file = folder / "ckpt" / "chat_template.jinja"
    file.write_text(file.read_text() + "{# as patient_1 was asked #}")


SPELLINGS = (
    *("patient_1", "Patient 1", "PATIENT-1", "patient1", "Patient\u00a01", "Patient\n1", "Patient\t1", "patient__1"),
    *("Patient #1", "patient no. 1", "patient: 1", '"patient": "1"', "patient=1", "study_1", "STUDY 1", "Study #1"),
    *(
        "ｐａｔｉｅｎｔ＿１",
        "pat\u00adient_1",
        "\u200bpatient_\u200b1",
        "patient\u20111",
        "patient_\u0661",
        "patient_\u0967",
        "p\u0430tient_1",
        "P\u0410TIENT_1",
        "pati\u0435nt 1",
    ),
    *(
        "patient\\_1",
        "pati**ent**_1",
        "`patient` 1",
        "patient&#95;1",
        "patient%5F1",
        "patient\\u005f1",
        "Patient <b>1</b>",
    ),
    *(
        "scans/patient_1.nii.gz",
        "institution_1/patient_1/study_1",
        "patient_1, patient_2",
        "(patient_1)",
        "patient_1's",
        "Patient1Study1",
        "runPatient1",
        "pati\\\n  ent_1",
    ),
)
OTHERS = (
    *(
        "patient_10",
        "patient_11 and 12",
        "1 patient",
        "inpatient_1",
        "patient_1a",
        "patient.1",
        "study 10",
        "version 1",
        "Patient10Study10",
    ),
    *("findings", "the findings and the impression", "institution_1", "layers 1-4", "p. 1"),
    "\u0430\u0435\u043e 1",
)

CASES: list[Case] = [
    *(refused(f"a text says {text!r}", holds("README.md", f"Trained on {text}, and more."), AT) for text in SPELLINGS),
    *(refused(f"a page says {text!r}", holds("a.html", f"<p>{html.escape(text)}</p>"), AT) for text in SPELLINGS[:4]),
    *(refused(f"an address says {text!r}", holds("a.txt", f"x/{quote(text)}?a"), AT) for text in SPELLINGS[:4]),
    *(refused(f"JSON says {text!r}", holds("args.json", json.dumps([text])), AT) for text in SPELLINGS[:4]),
    *(refused(f"YAML says {text!r}", holds("a/train.yaml", f"runs:\n - {text}: 3\n"), AT) for text in SPELLINGS[:4]),
    *(refused(f"in {each}", holds("n.txt", "Für patient_1.", each), AT) for each in ("latin-1", "cp1252", "utf-8-sig")),
    *(
        refused(f"a file called {name}", holds(name, "x"), AT)
        for name in ("Patient 1.txt", "PATIENT-1/a.txt", "study_1", "patient%5F1.txt", "runPatient1.txt")
    ),
    *(
        refused(f"{name}: {key}", put(f"ckpt/{name}", key, value), AT)
        for name, key, value in (
            ("config.json", "_name_or_path", "/data/patient_1/ckpt"),
            ("config.json", "id2label", {"0": "patient_1"}),
            ("generation_config.json", "run", "Patient 1"),
            ("tokenizer_config.json", "extra_special_tokens", {"x": "patient_1"}),
            ("tokenizer.json", "model.vocab.patient_1", 383),
            ("preprocessor_config.json", "note", ["study_1"]),
        )
    ),
    refused("metadata of the weights", _metadata, AT),
    refused("a comment in the chat template", _comment, AT),
    passes("what only looks like it", both(*(holds(f"notes/{n}.md", text) for n, text in enumerate(OTHERS))), EDIT),
    passes("a folder of its name, with nothing in it", lambda folder: (folder / "ckpt" / "patient_1").mkdir(), EDIT),
]
