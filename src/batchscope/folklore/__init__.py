"""What people say about batch size, one file a claim: what is said, how it is tested, the verdict."""

from batchscope.folklore.claims import CLAIMS, claims
from batchscope.folklore.solutions import solutions

__all__ = ["CLAIMS", "claims", "solutions"]
