"""Local learning rules: functions of a carry and what a connection saw, frozen and hashable, named as in inferno."""

from jaxkit.spiking.plasticity.homeostasis import LinearHomeostasis
from jaxkit.spiking.plasticity.rule import Rule, Updates
from jaxkit.spiking.plasticity.stdp import MSTDP, MSTDPET, STDP, StableSTDP, StableTripletSTDP, TripletSTDP
from jaxkit.spiking.plasticity.timing import (
    DelayAdjustedKernelSTDP,
    DelayAdjustedKernelSTDPD,
    DelayAdjustedMSTDP,
    DelayAdjustedMSTDPD,
    DelayAdjustedSTDP,
    DelayAdjustedSTDPD,
    KernelSTDP,
    exp_stdp_post_kernel,
    exp_stdp_pre_kernel,
)
from jaxkit.spiking.plasticity.updater import Clamping, Normalization, Updater

RULES: dict[str, type[Rule]] = {
    "STDP": STDP,
    "StableSTDP": StableSTDP,
    "TripletSTDP": TripletSTDP,
    "StableTripletSTDP": StableTripletSTDP,
    "MSTDP": MSTDP,
    "MSTDPET": MSTDPET,
    "KernelSTDP": KernelSTDP,
    "DelayAdjustedSTDP": DelayAdjustedSTDP,
    "DelayAdjustedSTDPD": DelayAdjustedSTDPD,
    "DelayAdjustedMSTDP": DelayAdjustedMSTDP,
    "DelayAdjustedMSTDPD": DelayAdjustedMSTDPD,
    "DelayAdjustedKernelSTDP": DelayAdjustedKernelSTDP,
    "DelayAdjustedKernelSTDPD": DelayAdjustedKernelSTDPD,
    "LinearHomeostasis": LinearHomeostasis,
}

__all__ = [
    "MSTDP",
    "MSTDPET",
    "RULES",
    "STDP",
    "Clamping",
    "DelayAdjustedKernelSTDP",
    "DelayAdjustedKernelSTDPD",
    "DelayAdjustedMSTDP",
    "DelayAdjustedMSTDPD",
    "DelayAdjustedSTDP",
    "DelayAdjustedSTDPD",
    "KernelSTDP",
    "LinearHomeostasis",
    "Normalization",
    "Rule",
    "StableSTDP",
    "StableTripletSTDP",
    "TripletSTDP",
    "Updater",
    "Updates",
    "exp_stdp_post_kernel",
    "exp_stdp_pre_kernel",
]
