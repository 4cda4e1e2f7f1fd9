"""What `chip eval` found of a folder, as a statement about its files that can be signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from chip._version import __version__
from chip.checkpoint.adapter import Adapter, find_base, holds_adapter
from chip.checkpoint.folder import files_in
from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.signing import SIGNATURE, Signer, SigningKey, is_signature, signature_of
from chip.checkpoint.statement import EVALUATION, LIMITS, finite, is_statement, statement_text
from chip.checkpoint.verify import GITATTRIBUTES
from chip.checkpoint.weights import weights_digest
from chip.evaluation.rows import Evaluation
from chip.progress import ProgressCallback, silent
from chip.report.files import check_place, not_written


@dataclass(frozen=True)
class PendingStatement:
    """A statement about a folder as it was before it was evaluated."""

    file: Path
    subject: Mapping[str, str]
    """File, relative to the folder -> SHA-256. The receipt is among them, if there is one, and its signature is not."""
    signer: Signer | None
    base: str | None = None
    """`weights_digest` of what the folder is an adapter to, where it is one."""

    @classmethod
    def of(
        cls,
        file: Path,
        checkpoint: Path,
        reference: Path | None = None,
        key: SigningKey | None = None,
        *,
        base: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> Self:
        """Hash the folder that is going to be evaluated.

        Args:
            base: what it belongs to, where it is an adapter; by default the base that it names.

        Raises:
            InputError: nothing could be written to `file`, or signed.
        """
        folders = [checkpoint, *([] if reference is None else [reference])]
        check_place(file, "statement", lambda path: not path.stat().st_size or is_statement(path, EVALUATION), *folders)
        signer = None if key is None else Signer(key)
        check_place(signature_of(file), "signature", is_signature, *folders)
        files = {str(name): path for path, name in files_in(checkpoint) if str(name) not in (SIGNATURE, GITATTRIBUTES)}
        with progress(f"hashing {checkpoint.resolve().name}", len(files)) as advance:
            digests = digest_all([(path, ()) for path in files.values()], advance)
        subject = {name: digest.whole for name, digest in zip(files, digests, strict=True)}
        return cls(file, subject, signer, _base_digest(checkpoint, base, progress))

    def write(self, evaluation: Evaluation) -> None:
        """Write what was found, over a statement that is there, and the signature beside it, `FILE.sig`.

        Nobody is named in it: figures by group, attacks, what was skipped, and what none of it shows.

        Raises:
            InputError: it cannot be written, or signed.
        """
        found = finite(evaluation.to_json())
        predicate = {
            "chip": __version__,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "environment": dict(evaluation.environment),
            **({} if self.base is None else {"base": self.base}),
            **{name: found[name] for name in ("seed", "attacks", "skipped", "few_questions")},
            "figures": found["rows"],
            "reference": found["reference"],
            "limits": list(LIMITS),
        }
        try:
            self.file.write_bytes(statement_text(self.subject, EVALUATION, predicate))
            signature_of(self.file).unlink(missing_ok=True)  # of what was there before
        except OSError as error:
            raise not_written(self.file, error) from error
        if self.signer is not None:
            self.signer.sign(self.file)


def _base_digest(folder: Path, base: Path | None, progress: ProgressCallback) -> str | None:
    if not holds_adapter(folder):
        return None
    base = find_base(Adapter.open(folder)) if base is None else base
    return weights_digest(Checkpoint.open(base, quantized=True), progress)
