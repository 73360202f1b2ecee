"""The loop that trains mobilemamba_nano_fpn and mobilemamba_nano_ssdlite: scenes, two learning rates, an average."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from compose import Composer, load_split
from safetensors.torch import load_file, save_file
from train_nano import MEAN, STD, fast_selective_scan, make_optimizers

from mmref.bench import torch_network
from mmref.models.create import pretrained_weights


def arguments(parser):
    parser.add_argument("--data", help="folder with train/ and test/, one folder per class")
    parser.add_argument("--out", required=True, help="folder for the checkpoint and the weights file")
    parser.add_argument("--start", help="weights file whose backbone is trained on (default: mobilemamba_nano's)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, on a new schedule")
    parser.add_argument("--minutes", type=float, default=26)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3, help="of neck and head")
    parser.add_argument("--backbone-lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--save-every", type=float, default=2, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", action="store_true", help="no training: the weights file of the checkpoint in --out")
    return parser.parse_args()


def to_input(scenes):
    """(B, 3, SIZE, SIZE) float32, normalised, of scenes or (SIZE, SIZE, 3) uint8 arrays."""
    x = np.stack([getattr(s, "pixels", s) for s in scenes]).astype(np.float32) / 255
    x = (x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(x).permute(0, 3, 1, 2)  # channels last in memory


def start_backbone(model, path):
    """Load the backbone of a classifier's or a dense network's weights file: every parameter of it."""
    state = load_file(path)
    if not any(key.startswith("backbone.") for key in state):
        state = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("head.")}
    state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [k for k in missing if k.startswith("backbone.") and not k.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise SystemExit(f"{path}: not the backbone's parameters: {', '.join(wrong[:5])}")


def fast(model):
    """Channels last, and the scan that autograd records in one step."""
    for module in model.modules():
        if isinstance(module, torch_network.SS2D):
            module.scan = fast_selective_scan
    return model.to(memory_format=torch.channels_last)


def optimizers_of(model, args):
    """[(their share of the schedule's top rate, views, optimizers)]: the backbone's and the rest's."""
    rest = torch.nn.ModuleList(m for name, m in model.named_children() if name != "backbone")
    return [(rate, *make_optimizers(part, rate, args.weight_decay))
            for part, rate in ((model.backbone, args.backbone_lr), (rest, args.lr))]


def train(args, model, loss):
    """`loss(model, x, scenes)` on new scenes until the clock says so; checkpoints in `args.out`."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        facts = torch.load(out / "checkpoint.pth", weights_only=True)
        model.load_state_dict(facts["net_E"])
        earlier = facts["iter"]
    else:
        start_backbone(model, args.start or pretrained_weights("mobilemamba_nano"))
        earlier = 0
    model = fast(model).train()
    ema = copy.deepcopy(model).requires_grad_(False)
    composer, groups = Composer(*load_split(args.data, "train"), args.seed), optimizers_of(model, args)
    begin, saved, step, progress, losses = time.monotonic(), 0.0, 0, 0.0, []
    while progress < 1:
        scenes = [composer() for _ in range(args.batch)]
        value = loss(model, to_input(scenes), scenes)
        value.backward()
        for rate, views, optimizers in groups:
            for p, view in views:
                view.grad = p.grad.reshape(view.shape) if p.grad is not None else None
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / 100) * (1 - progress)
                optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        update(ema, model, min(args.ema, (1 + step) / (10 + step)))
        losses.append(float(value.detach()))
        seconds = time.monotonic() - begin
        progress = seconds / (60 * args.minutes)
        if progress >= 1 or seconds - saved > 60 * args.save_every:
            saved = seconds
            done = earlier + step
            print(f"step {done} progress {progress:.3f} loss {np.mean(losses):.4f} seconds {seconds:.0f}", flush=True)
            losses = []
            temporary = out / "checkpoint.tmp"
            torch.save({"net_E": ema.state_dict(), "iter": done, "scenes": done * args.batch}, temporary)
            temporary.replace(out / "checkpoint.pth")


@torch.no_grad()
def update(ema, model, decay):
    for a, b in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


def write_weights(out, name, metadata):
    """`out/name.safetensors` of `out/checkpoint.pth`: published names; float16, but for vectors (batch norms, biases),
    which hardly take room and of which some are too small or too large for it."""
    facts = torch.load(out / "checkpoint.pth", weights_only=True)
    state = {key: (value if value.ndim < 2 else value.half()).contiguous()
             for key, value in facts["net_E"].items() if not key.endswith("num_batches_tracked")}
    save_file(state, out / f"{name}.safetensors", metadata={
        "model": name, "licence": "MIT", "steps": str(facts["iter"]), "scenes": str(facts["scenes"]), **metadata})
