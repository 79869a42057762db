"""The toy language: a model, prompts and labels in a world where the truth is known.

A transformer of some 60,000 weights answers prompts about two topics. How good an answer is,
`gold`, is a formula that the program knows and no model sees; a second skill, copying, can be
forgotten; labellers err, flip and favour length by as much as they are told to. So a claim about
a method of alignment can be held against the truth, in seconds, through the very code that trains
and serves large models. Claim signs from it, not magnitudes.

Importing this package loads no torch; `toy.model` and `toy.measure` load it when called.
"""

from trueup.toy.labellers import GoldJudge, Labeller
from trueup.toy.language import copy_correct, copy_prompts, gold, prompts

__all__ = ["GoldJudge", "Labeller", "copy_correct", "copy_prompts", "gold", "prompts"]
