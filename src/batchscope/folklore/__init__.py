"""Common claims about batch size, one file per claim: the statement, the experiment and the verdict."""

from batchscope.folklore.claims import CLAIMS, claims
from batchscope.folklore.solutions import solutions

__all__ = ["CLAIMS", "claims", "solutions"]
