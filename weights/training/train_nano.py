"""Train mobilemamba_nano on CIFAR-10 with the PyTorch reference (not needed to use mmref).

    tar -xJf ../shared/data/cifar10_jpeg.tar.xz -C /tmp/cifar10
    python weights/training/train_nano.py --data /tmp/cifar10 --minutes 95 --out /tmp/nano

The schedule follows the clock, not the step count: the learning rate reaches zero after `--minutes`,
however busy the machine is. What is written after every epoch, `nano.pth`, is a trainer checkpoint
(`net`, `net_E`, ...) as the published trainer writes it; at the end its EMA weights become
`mobilemamba_nano.safetensors`, which brings its transform and class names along. (`--ship` does only
that.) The test pictures are counted for the log and never choose anything.

Recipe: pictures augmented at their own 32 pixels (shift, flip, grey and brightness jitter), enlarged
by PIL's bicubic matrix to 96 and later 128 pixels; label smoothing; Muon for the matrices, AdamW for the
rest; linear decay; an exponential moving average of the weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mmref.bench import torch_network

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Recurrence(torch.autograd.Function):
    """h[l] = a[l] * h[l-1] + b[l] along the first axis, h[-1] = 0, with its exact gradient.

    The reference's scan records some ten operations per step for autograd; this records one."""

    @staticmethod
    def forward(ctx, a, b):
        h = torch.empty_like(b)
        h[0] = b[0]
        for step in range(1, len(b)):
            torch.addcmul(b[step], a[step], h[step - 1], out=h[step])
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, grad):
        a, h = ctx.saved_tensors
        db = torch.empty_like(grad)
        db[-1] = grad[-1]
        for step in range(len(grad) - 2, -1, -1):
            torch.addcmul(grad[step], a[step + 1], db[step + 1], out=db[step])
        da = torch.zeros_like(a)
        torch.mul(db[1:], h[:-1], out=da[1:])
        return da, db


def fast_selective_scan(u, delta, A, B, C, D):
    """`torch_network.selective_scan` for one state per channel, time first in memory."""
    u, delta = u.permute(3, 0, 1, 2), delta.permute(3, 0, 1, 2)              # (L, B, K, D)
    B, C = (m[:, :, 0].permute(2, 0, 1)[..., None] for m in (B, C))          # (L, B, K, 1)
    h = Recurrence.apply(torch.exp(delta * A[..., 0]).contiguous(), (delta * B * u).contiguous())
    return (h * C + D * u).permute(1, 2, 3, 0)


def bicubic_matrix(size):
    """(size, 32): PIL's own bicubic enlargement of one axis, read off its answer to unit impulses."""
    eye = Image.fromarray(np.eye(32, dtype=np.float32))
    return torch.from_numpy(np.array(eye.resize((32, size), Image.BICUBIC)))


def load_split(root, split):
    paths = [(p, i) for i, name in enumerate(CLASSES) for p in sorted((Path(root) / split / name).glob("*.jpg"))]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p, _ in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor([i for _, i in paths])


def augment(x, shift=4):
    """(B, 3, 32, 32) in 0..1: one random shift, flip and colour change a picture."""
    batch = len(x)
    padded = F.pad(x, (shift,) * 4, mode="reflect")
    dy, dx = torch.randint(0, 2 * shift + 1, (2, batch))
    rows, cols = dy[:, None] + torch.arange(32), dx[:, None] + torch.arange(32)
    cols = torch.where(torch.rand(batch, 1) < 0.5, cols.flip(1), cols)
    x = padded[torch.arange(batch)[:, None, None, None], torch.arange(3)[None, :, None, None],
               rows[:, None, :, None], cols[:, None, None, :]]
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    x = torch.where(torch.rand(batch, 1, 1, 1) < 0.1, grey.expand_as(x), x)
    gain, offset = 1 + 0.15 * torch.randn(batch, 1, 1, 1), 0.05 * torch.randn(batch, 1, 1, 1)
    return ((x - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def prepare(x, matrix):
    """0..1 pixels (B, 3, 32, 32) -> normalised network input, enlarged by `matrix` on both axes."""
    x = matrix @ x.clamp(0, 1) @ matrix.T
    x = (x.clamp(0, 1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def count_correct(model, pixels, labels, matrix):
    model.eval()
    return sum(int((model(prepare(pixels[i:i + 250].float() / 255, matrix)).argmax(1) == labels[i:i + 250]).sum())
               for i in range(0, len(pixels), 250))


def make_optimizers(model, lr, weight_decay):
    """Muon for the weights that are matrices (pointwise convolutions), AdamW for everything else.

    Muon takes 2-D parameters only, so it gets 2-D views of the 1x1 weights; `views` keeps the pairs."""
    matrices, others = [], []
    for p in model.parameters():
        if p.requires_grad:
            is_matrix = p.ndim == 4 and p.shape[2:] == (1, 1) and min(p.shape[:2]) > 1
            (matrices if is_matrix else others).append(p)
    views = [(p, torch.nn.Parameter(p.data.view(p.shape[:2]))) for p in matrices]
    muon = torch.optim.Muon([v for _, v in views], lr=lr, weight_decay=weight_decay,
                            adjust_lr_fn="match_rms_adamw")
    decayed = [p for p in others if p.ndim > 2]
    plain = [p for p in others if p.ndim <= 2]
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": weight_decay},
                               {"params": plain, "weight_decay": 0.0}], lr=lr)
    return views, (muon, adamw)


def ship(out):
    """The safetensors file of a finished training, through mmref's own reader."""
    from mmref.data.picture import NANO_TRANSFORM
    from mmref.weights import convert
    facts = torch.load(out / "nano.pth", weights_only=False)
    metadata = {"model": "mobilemamba_nano", "licence": "MIT", "class_names": json.dumps(CLASSES),
                "transform": json.dumps(NANO_TRANSFORM.to_dict()), "epochs": str(facts["epoch"]),
                "steps": str(facts["iter"])}
    convert(out / "nano.pth", out / "mobilemamba_nano.safetensors", metadata=metadata)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pixels, labels = load_split(args.data, "train")
    test_pixels, test_labels = load_split(args.data, "test")
    model = torch_network.create("nano", len(CLASSES)).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, torch_network.SS2D):
            module.scan = fast_selective_scan
    ema = copy.deepcopy(model).requires_grad_(False)
    views, optimizers = make_optimizers(model, args.lr, args.weight_decay)
    matrices = {size: bicubic_matrix(size) for size in (args.first_size, args.size)}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    start, step, epoch, progress, seen = time.monotonic(), 0, 0, 0.0, []
    while progress < 1:
        losses = []
        for index in torch.randperm(len(pixels)).split(args.batch)[:len(pixels) // args.batch]:
            progress = (time.monotonic() - start) / (60 * args.minutes)
            if progress >= 1:
                break
            size = args.first_size if progress < args.switch else args.size
            rate = args.lr * min(1.0, (step + 1) / 200) * (1 - progress)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            model.train()
            x = prepare(augment(pixels[index].float() / 255), matrices[size])
            loss = F.cross_entropy(model(x), labels[index], label_smoothing=0.1)
            loss.backward()
            for p, view in views:
                view.grad = p.grad.reshape(view.shape)
            for optimizer in optimizers:
                optimizer.step()
            for p in model.parameters():
                p.grad = None
            step += 1
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
                    a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)
            losses.append(float(loss.detach()))
        epoch += 1
        line = f"epoch {epoch} step {step} size {size} progress {progress:.3f} loss {np.mean(losses):.4f}"
        if epoch % args.count_every == 0 or progress >= 1:
            correct = count_correct(ema, test_pixels, test_labels, matrices[size])
            line += f" test {correct}/{len(test_labels)}"
            seen.append((epoch, correct))
        print(line, f"seconds {time.monotonic() - start:.0f}", flush=True)
        torch.save({"net": model.state_dict(), "net_E": ema.state_dict(), "optimizer": {}, "scheduler": {},
                    "scaler": None, "iter": step, "epoch": epoch, "topk_recorder": {"net_E": seen},
                    "total_time": time.monotonic() - start, "nan_or_inf_cnt": 0}, out / "nano.pth")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with train/ and test/, one folder per class")
    parser.add_argument("--out", required=True, help="folder for nano.pth")
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--first-size", type=int, default=96)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--switch", type=float, default=0.5, help="share of the time at --first-size")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--count-every", type=int, default=4, help="epochs between counts on the test set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", action="store_true", help="no training: convert the nano.pth that is in --out")
    args = parser.parse_args()
    if not args.ship:
        train(args)
    ship(Path(args.out))


if __name__ == "__main__":
    main()
