"""The optimizers of a recipe by timm's names: one row per class, with its own arguments.

`tests/training/test_optimizers.py` compares the names, arguments and defaults with the installed
timm, and resumes training with each of them bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zoo.common.errors import brief, nearest, shortened

Arguments = dict[str, Any]


@dataclass(frozen=True)
class OptimizerRow:
    """One class of optimizers.

    `names` are timm's, each with the defaults in which it differs from `arguments`. `lr` is the
    class's own default rate, `momentum` whether it takes the recipe's `momentum`.
    """

    title: str
    lr: float | None
    names: dict[str, Arguments]
    arguments: Arguments = field(default_factory=dict)
    momentum: bool = False


CAUTIOUS = {"caution": True}
CORRECTED = {"corrected_weight_decay": True}
DECOUPLED = {"decoupled_decay": True}
NESTEROV = {"nesterov": True}
BETAS = {"betas": [0.9, 0.999]}
ADAM = BETAS | {"eps": 1e-8}
OFF = {"caution": False, "corrected_weight_decay": False}

OPTIMIZER_ROWS = (
    OptimizerRow("AdamW (torch)", 1e-3, {"adamw": {}}, ADAM | {"amsgrad": False}),
    OptimizerRow(
        "SGD (torch)", 1e-3, {"sgd": NESTEROV, "nesterov": NESTEROV, "momentum": {}},
        {"dampening": 0.0, "nesterov": False}, momentum=True,
    ),
    OptimizerRow(
        "AdaBelief, arXiv 2010.07468", 1e-3, {"adabelief": {"rectify": False}, "radabelief": {}},
        BETAS | {
            "eps": 1e-16, "amsgrad": False, "decoupled_decay": True, "fixed_decay": False,
            "rectify": True, "degenerated_to_sgd": True,
        },
    ),
    OptimizerRow("Adadelta (torch)", 1.0, {"adadelta": {}}, {"rho": 0.9, "eps": 1e-6}),
    OptimizerRow(
        "Adafactor, arXiv 1804.04235", None,
        {"adafactor": {}, "cadafactor": CAUTIOUS | BETAS},
        {
            "eps": 1e-30, "eps_scale": 1e-3, "clip_threshold": 1.0, "decay_rate": -0.8,
            "betas": None, "min_dim_size_to_factor": 16, "caution": False,
        },
    ),
    OptimizerRow(
        "Adafactor of Big Vision", 1.0,
        {
            "adafactorbv": {}, "adafactorbvc": CORRECTED, "cadafactorbv": CAUTIOUS,
            "cadafactorbvc": CAUTIOUS | CORRECTED,
        },
        {
            "min_dim_size_to_factor": 16, "decay_rate": 0.8, "decay_offset": 0,
            "beta2_cap": 0.999, "eps": None, "clipping_threshold": None, "unscaled_wd": False,
            **OFF,
        },
        momentum=True,
    ),
    OptimizerRow(
        "Adagrad (torch)", 1e-2, {"adagrad": {"eps": 1e-8}},
        {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
    ),
    OptimizerRow(
        "Adam (torch)", 1e-3, {"adam": {}},
        ADAM | {"amsgrad": False, "decoupled_weight_decay": False},
    ),
    OptimizerRow("Adamax (torch)", 2e-3, {"adamax": {}}, ADAM),
    OptimizerRow(
        "AdamW of timm", 1e-3,
        {
            "adamwlegacy": {}, "adamc": CORRECTED, "cadamw": CAUTIOUS,
            "cadamc": CAUTIOUS | CORRECTED,
        },
        ADAM | {"amsgrad": False, "clipping_threshold": None, **OFF},
    ),
    OptimizerRow(
        "AdamP, arXiv 2006.08217", 1e-3,
        {
            "adamp": NESTEROV | {"wd_ratio": 0.01},
            "cadamp": NESTEROV | CAUTIOUS | {"wd_ratio": 0.01},
        },
        ADAM | {"delta": 0.1, "wd_ratio": 0.1, "nesterov": False, "caution": False},
    ),
    OptimizerRow(
        "Adan, arXiv 2208.06677", 1e-3,
        {
            "adan": {}, "adanw": {"no_prox": True}, "cadan": CAUTIOUS,
            "cadanw": CAUTIOUS | {"no_prox": True},
        },
        {"betas": [0.98, 0.92, 0.99], "eps": 1e-8, "no_prox": False, "caution": False},
    ),
    OptimizerRow(
        "ADOPT, arXiv 2411.02853", 1e-3,
        {
            "adopt": {}, "adoptw": {"decoupled": True}, "adoptc": {"decoupled": True} | CORRECTED,
            "cadopt": CAUTIOUS, "cadoptw": CAUTIOUS | {"decoupled": True},
            "cadoptc": CAUTIOUS | {"decoupled": True} | CORRECTED,
        },
        {"betas": [0.9, 0.9999], "eps": 1e-6, "clip_exp": 0.333, "decoupled": False, **OFF},
    ),
    OptimizerRow(
        "LAMB, arXiv 1904.00962", 1e-3,
        {
            "lamb": {}, "lambc": {"trust_clip": True}, "lambw": DECOUPLED,
            "lambcw": {"trust_clip": True} | DECOUPLED, "lambcd": DECOUPLED | CORRECTED,
            "clamb": CAUTIOUS, "clambw": CAUTIOUS | DECOUPLED,
        },
        {
            "bias_correction": True, **BETAS, "eps": 1e-6, "grad_averaging": True,
            "max_grad_norm": 1.0, "trust_clip": False, "always_adapt": False,
            "decoupled_decay": False, **OFF,
        },
    ),
    OptimizerRow(
        "LaProp, arXiv 2002.04839", 4e-4,
        {"laprop": {}, "lapropc": CORRECTED, "claprop": CAUTIOUS}, BETAS | {"eps": 1e-15, **OFF},
    ),
    OptimizerRow(
        "LARS, arXiv 1708.03888", 1.0,
        {
            "lars": {}, "larc": {"trust_clip": True}, "nlars": NESTEROV,
            "nlarc": NESTEROV | {"trust_clip": True},
        },
        {
            "dampening": 0.0, "nesterov": False, "trust_coeff": 1e-3, "eps": 1e-8,
            "trust_clip": False, "always_adapt": False,
        },
        momentum=True,
    ),
    OptimizerRow(
        "Lion, arXiv 2302.06675", 1e-4,
        {"lion": {}, "lionc": CORRECTED, "clion": CAUTIOUS, "clionc": CAUTIOUS | CORRECTED},
        {"betas": [0.9, 0.99], **OFF},
    ),
    OptimizerRow(
        "MARS, arXiv 2411.10438", 3e-3, {"mars": {}, "cmars": CAUTIOUS},
        {
            "betas": [0.9, 0.99], "eps": 1e-8, "gamma": 0.025, "mars_type": "adamw",
            "optimize_1d": False, "lr_1d_factor": 1.0, "betas_1d": None, "caution": False,
        },
    ),
    OptimizerRow(
        "Muon, and AdamW for parameters with one dimension", 2e-2,
        {
            "muon": {}, "nmuon": NESTEROV, "adamuon": {}, "nadamuon": NESTEROV,
        },
        {
            "nesterov": False, "ns_steps": 5, "ns_coefficients": "quintic",
            "eps": 1e-7, "safety_factor": 1.0, "adjust_lr_fn": "match_rms_adamw",
            "conv_mode": "flatten", "normalize_spatial": True, "fallback_lr_scale": 1.0,
            "betas": [0.9, 0.95], "scale_eps": False,
        },
        momentum=True,
    ),
    OptimizerRow(
        "NAdam (torch)", 2e-3, {"nadam": {}},
        ADAM | {"momentum_decay": 4e-3, "decoupled_weight_decay": False},
    ),
    OptimizerRow("NAdam of timm", 2e-3, {"nadamlegacy": {}}, ADAM | {"schedule_decay": 4e-3}),
    OptimizerRow(
        "NAdamW", 1e-3,
        {
            "nadamw": {}, "nadamc": CORRECTED, "cnadamw": CAUTIOUS,
            "cnadamc": CAUTIOUS | CORRECTED,
        },
        ADAM | {"clipping_threshold": None, **OFF},
    ),
    OptimizerRow(
        "NovoGrad, arXiv 1905.11286", 1e-3,
        {"novograd": {}, "novogradw": DECOUPLED, "novogradc": DECOUPLED | CORRECTED},
        {
            "betas": [0.95, 0.98], "eps": 1e-8, "grad_averaging": False, "amsgrad": False,
            "decoupled_decay": False, "corrected_weight_decay": False,
        },
    ),
    OptimizerRow(
        "RAdam (torch)", 1e-3, {"radam": {}, "radamw": {"decoupled_weight_decay": True}},
        ADAM | {"decoupled_weight_decay": False},
    ),
    OptimizerRow("RAdam of timm", 1e-3, {"radamlegacy": {}}, ADAM),
    OptimizerRow(
        "RMSprop (torch)", 1e-2, {"rmsprop": {"alpha": 0.9}},
        {"alpha": 0.99, "eps": 1e-8, "centered": False}, momentum=True,
    ),
    OptimizerRow(
        "RMSprop of TensorFlow", 1e-2,
        {
            "rmsproptf": {}, "rmsproptfw": DECOUPLED, "rmsproptfc": DECOUPLED | CORRECTED,
            "crmsproptf": CAUTIOUS,
        },
        {
            "alpha": 0.9, "eps": 1e-10, "centered": False, "decoupled_decay": False,
            "lr_in_momentum": True, **OFF,
        },
        momentum=True,
    ),
    OptimizerRow(
        "SGDP, arXiv 2006.08217", None, {"sgdp": NESTEROV, "csgdp": NESTEROV | CAUTIOUS},
        {
            "dampening": 0.0, "nesterov": False, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1,
            "caution": False,
        },
        momentum=True,
    ),
    OptimizerRow(
        "SGD with decoupled weight decay", 1e-3,
        {
            "sgdw": NESTEROV, "nesterovw": NESTEROV, "sgdc": NESTEROV | CORRECTED,
            "csgdw": NESTEROV | CAUTIOUS, "csgdc": NESTEROV | CAUTIOUS | CORRECTED,
        },
        {"dampening": 0.0, "nesterov": False, **OFF},
        momentum=True,
    ),
)  # fmt: skip
"""Left out are arguments that decide how, and not what, an optimizer computes (`foreach`)."""

MOST_STEPS = 100
"""Newton-Schulz iterations of Muon within one step; timm takes 5."""
BIG = 1e30
"""Numbers are finite, and small enough for the float32 of weights."""

OPTIMIZERS: dict[str, OptimizerRow] = {name: row for row in OPTIMIZER_ROWS for name in row.names}

REFUSED_OPTIMIZERS: dict[str, str] = {
    "adahessian": "needs second-order gradients, a second backward pass in each step; take adamw",
    **dict.fromkeys(
        ("kron", "kronw", "kronc"),
        "compiles a function for every shape of a weight, minutes before the first step; take muon",
    ),
    **dict.fromkeys(
        ("madgrad", "madgradw"),
        "moves weights whose rate is 0, so rates by layer do not hold; take adamw",
    ),
    **dict.fromkeys(
        ("fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd"),
        "is of the package apex; adamw and sgd are fused by torch itself",
    ),
    **dict.fromkeys(
        (
            "bnbadam", "bnbadam8bit", "bnbadamw", "bnbadamw8bit", "bnbademamix",
            "bnbademamix8bit", "bnblion", "bnblion8bit", "bnbsgd", "bnbsgd8bit",
        ),
        "is of the package bitsandbytes; take adamw, sgd or lion, or adafactor to save memory",
    ),
}  # fmt: skip
"""Optimizers of timm that a recipe cannot have: the reason, and what to take instead."""

OPTIONAL: Arguments = {
    "betas": [0.9, 0.999], "betas_1d": [0.9, 0.99], "clipping_threshold": 1.0, "eps": 1e-30,
}  # fmt: skip
"""What an argument whose default is None looks like where it is given."""

CHOICES = {
    "adjust_lr_fn": ("original", "match_rms_adamw", "rms_to_rms"),
    "conv_mode": ("flatten", "batched"),
    "mars_type": ("adamw", "lion"),
    "ns_coefficients": ("original", "quintic", "polar_express", "polar_express_safer"),
}
"""What an argument that is text may be."""


def own_arguments(name: str) -> Arguments:
    """The own arguments of the optimizer `name` and their defaults, lists where timm has tuples."""
    row = OPTIMIZERS[name]
    return row.arguments | row.names[name]


def is_default(name: str, key: str, value: object) -> bool:
    """Whether `value` is the default of the argument `key`, if the optimizer has it."""
    given = list(value) if isinstance(value, tuple) else value
    default = own_arguments(name).get(key, ...)
    return given == default and isinstance(given, bool) == isinstance(default, bool)


def known_optimizer(name: str) -> str:
    """`name` if a recipe can have this optimizer. Raises ValueError saying why not."""
    if name in REFUSED_OPTIMIZERS:
        raise ValueError(f"{name} {REFUSED_OPTIMIZERS[name]}")
    if name not in OPTIMIZERS:
        close = nearest(name[:100], OPTIMIZERS)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        ways = shortened(OPTIMIZERS, 8)
        raise ValueError(f"there is no optimizer {brief(name)}; {hint}Available: {ways}")
    return name


def checked_argument(key: str, value: object, default: Any) -> Any:
    """`value` as the argument `key` takes it. Raises ValueError saying what it should be."""
    if default is None:
        if value is None:
            return None
        default = OPTIONAL[key]
    if isinstance(default, list):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise ValueError(f"should be a list of {len(default)} numbers, got {value!r}")
        numbers = [checked_argument(key, entry, 0.0) for entry in value]
        if not all(0 <= number < 1 for number in numbers):
            raise ValueError(f"the numbers should be from 0 and below 1, got {value!r}")
        return numbers
    if isinstance(default, str):
        if value not in CHOICES[key]:
            raise ValueError(f"should be {' or '.join(CHOICES[key])}, got {value!r}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"should be true or false, got {value!r}")
    elif isinstance(default, int):
        if type(value) is not int or value < 0:
            raise ValueError(f"should be a whole number from 0, got {value!r}")
        if key == "ns_steps" and value > MOST_STEPS:
            raise ValueError(f"should be at most {MOST_STEPS}, got {value}")
    else:
        if not isinstance(value, int | float) or isinstance(value, bool) or not -BIG < value < BIG:
            raise ValueError(f"should be a finite number, got {value!r}")
        return float(value)
    return value
