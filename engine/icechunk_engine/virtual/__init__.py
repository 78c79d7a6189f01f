"""Virtual chunks: containers and who may read them, references, and reading what they refer to."""

from icechunk_engine.config import VirtualChunkContainer, VirtualChunkSpec

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec"]
