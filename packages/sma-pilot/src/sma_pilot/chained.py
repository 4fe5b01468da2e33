"""A record whose hash is that of its file, so that the next one can hold it: a chain of them."""

import hashlib

from pydantic import BaseModel


class ChainedRecord(BaseModel):
    """What a file of a chain holds; the fields are those of each kind of record."""

    @property
    def content(self) -> bytes:
        """The record as it lies on disk."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the record's file: what `sha256sum` prints."""
        return hashlib.sha256(self.content).hexdigest()
