"""Checkpoints: written whole or not at all, each ending in the SHA-256 of what stands before.

PyTorch's own files load with a flipped bit as silently wrong weights, so the digest is checked before anything is
unpickled. The trailer stands after the zip archive, where ``torch.load`` does not mind it.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from seqpyramid.errors import IntegrityError
from seqpyramid.rundir import write_atomically

TRAILER = b"\nseqpyramid checkpoint sha256 "
DIGEST_LENGTH = 64


def save(path: Path, content: dict[str, Any]) -> str:
    """Write a checkpoint under a temporary name, rename it into place, and return its digest.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; the old checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest()
    write_atomically(path, payload + TRAILER + digest.encode())
    return digest


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint whose digest is right; ``digest`` is added to its content.

    Raises:
        IntegrityError: it is missing, truncated, changed, or no checkpoint of this tool.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{path}: cannot read this checkpoint ({error.strerror}); train again with --force"
        ) from None
    payload, trailer, digest = raw[: -len(TRAILER) - DIGEST_LENGTH], raw[-len(TRAILER) - DIGEST_LENGTH :], b""
    if trailer.startswith(TRAILER):
        digest = trailer[len(TRAILER) :]
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise IntegrityError(
            f"{path}: this checkpoint is damaged (its SHA-256 does not match); restore it from a copy, "
            "or train again with --force"
        )
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    content["digest"] = digest.decode()
    return content
