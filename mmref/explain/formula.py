r"""Formulas as MathML, from a line of letters: `h_l = e^{Delta_l A} h_{l-1}`.

Words are identifiers (greek where they name a letter, upright where they are a function), `_` and `^` take one thing or
what stands in braces, `frac{a}{b}` and `sqrt{a}` are what they are in print.
"""

from __future__ import annotations

import html
import re

_TOKEN = re.compile(r"\s*([A-Za-z]+|[0-9.]+|[{}_^]|.)")
_GREEK = {"Delta": "Δ", "sigma": "σ", "mu": "μ", "epsilon": "ε", "sum": "∑", "dot": "·", "in": "∈"}
_UPRIGHT = ("exp", "log", "max", "min", "mean", "var", "path", "softplus")

# an operation's name: what it computes; docs/operations.md says the same in words
FORMULAS = {
    "conv2d": "y_{o,p} = b_o + sum_{c,t} W_{o,c,t} x_{c, s p + t}",
    "depthwise_conv2d": "y_{c,p} = b_c + sum_t W_{c,t} x_{c, s p + t}",
    "depthwise_conv_transpose2d": "y_{c, s p + t} = sum_{p, t} W_{c,t} x_{c,p}",
    "linear": "y = W x + b",
    "batch_norm": "y_c = frac{x_c - mu_c}{sqrt{v_c + epsilon}} w_c + b_c",
    "layer_norm_channels": "y_{c,p} = frac{x_{c,p} - mean x_p}{sqrt{var x_p + epsilon}} w_c + b_c",
    "relu": "y = max(x, 0)", "relu6": "y = min(max(x, 0), 6)", "sigmoid": "y = frac{1}{1 + e^{-x}}",
    "silu": "y = frac{x}{1 + e^{-x}}", "softplus": "y = log(1 + e^x)", "add": "y = a + b", "multiply": "y = a dot b",
    "resize": "y_p = sum_q w_{p,q} x_q", "upsample": "y_p = sum_q w_{p,q} x_q",
    "adaptive_average_pool": "y_p = mean x_q , q in R_p", "max_pool2d": "y_p = max x_{s p + t}",
    "global_average_pool": "y_c = frac{1}{H W} sum_p x_{c,p}",
    "slice_axis": "y_c = x_{a + c}", "concatenate": "y = (a, b, ...)",
    "analysis": "z_{s,p} = sum_t F_{s,t} x_{2 p + t}", "synthesis": "y_{2 p + t} = sum_s F_{s,t} z_{s,p}",
    "low_low": "y_c = z_{4 c}", "add_to_low_low": "y_{4 c} = z_{4 c} + x_c",
    "cross_scan": "u_{k,l} = x_{path(k,l)}", "cross_merge": "y_{path(k,l)} = sum_k x_{k,l}",
    "project": "y_{k,l} = W_k u_{k,l}",
    "selective_scan": "h_l = e^{Delta_l A} h_{l-1} + Delta_l B_l u_l , y_l = C_l h_l + D u_l",
}


def mathml(text: str) -> str:
    """The line as a MathML element."""
    tokens = [match[1] for match in _TOKEN.finditer(text.strip())]
    return (f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{_row(tokens)}</math>')


def _row(tokens, closing=False):
    parts = []
    while tokens:
        if tokens[0] == "}":
            if closing:
                tokens.pop(0)
            break
        parts.append(_scripted(tokens))
    return f"<mrow>{''.join(parts)}</mrow>"


def _scripted(tokens):
    base = _one(tokens)
    below, above = None, None
    while tokens and tokens[0] in "_^":
        if tokens.pop(0) == "_":
            below = _one(tokens)
        else:
            above = _one(tokens)
    large = "∑" in base
    if below and above:
        return f"<msubsup>{base}{below}{above}</msubsup>"
    if below:
        return f"<munder>{base}{below}</munder>" if large else f"<msub>{base}{below}</msub>"
    return f"<msup>{base}{above}</msup>" if above else base


def _one(tokens):
    token = tokens.pop(0)
    if token == "{":
        return _row(tokens, closing=True)
    if token == "frac":
        return f"<mfrac>{_one(tokens)}{_one(tokens)}</mfrac>"
    if token == "sqrt":
        return f"<msqrt>{_one(tokens)}</msqrt>"
    if token in ("sum", "dot", "in"):
        return f"<mo>{_GREEK[token]}</mo>"
    if token in _UPRIGHT:
        return f"<mi>{token}</mi><mspace width='0.16em'/>"
    if token[0].isalpha():
        return f"<mi>{_GREEK.get(token, token)}</mi>"
    return f"<mn>{token}</mn>" if token[0].isdigit() else f"<mo>{html.escape(token.replace('-', '−'))}</mo>"
