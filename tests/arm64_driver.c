/* Runs the forward of arm64_image.py: driver IMAGE RESULT. Once on one thread, then 20 times on a team, and writes the
   logits. Exit status 1 where a team's differ from those of one thread, 6 where a denormal was not flushed, 7 where the
   caller, who rounds towards zero, does not get its floating-point mode back. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef long word;
#define KERNEL(name) extern void mmref_##name(word, word, word);
KERNEL(picture) KERNEL(stem) KERNEL(matmul) KERNEL(depthwise) KERNEL(wavelet_branch) KERNEL(scan) KERNEL(norm_gate)
KERNEL(copy_relu) KERNEL(mean) KERNEL(gate) KERNEL(result) KERNEL(install_tiles)
extern void mmref_walk_alone(word, word, word, word), mmref_lead(word, word, word, word, word);
extern void mmref_work(word), mmref_prepare(word);

static void (*const kernels[])(word, word, word) = {
    mmref_picture, mmref_stem, mmref_matmul, mmref_depthwise, mmref_wavelet_branch, mmref_scan, mmref_norm_gate,
    mmref_copy_relu, mmref_mean, mmref_gate, mmref_result};
struct { word base, size, steps, count, shares, tiles, team, logits, logits_bytes; } image;

static void *work(void *team) { mmref_work((word)team); return 0; }

static word mode(void) { word now; __asm__ volatile("mrs %0, fpcr" : "=r"(now)); return now; }

/* The mean over one pixel of denormals is their sum: whether it is zero. */
static int flushes(void) {
    static unsigned x[16], out[16];
    for (int i = 0; i < 16; i++) x[i] = out[i] = 1000;
    word record[] = {(word)x, 64, 1, 1, 1, (word)out, 64}, step[] = {(word)mmref_mean, (word)record, -1, 1};
    mmref_walk_alone((word)step, 1, 1, 0);
    for (int i = 0; i < 16; i++) if (out[i] != 0) return 0;
    return 1;
}

int main(int argc, char **argv) {
    FILE *file = fopen(argv[1], "rb");
    if (argc != 3 || !file || fread(&image, sizeof image, 1, file) != 1) return 2;
    if (mmap((void *)image.base, image.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        != (void *)image.base || fread((void *)image.base, 1, image.size, file) != (size_t)image.size) return 3;
    mmref_install_tiles(image.tiles, 0, 1);
    for (word i = 0; i < image.count; i++) {
        word *step = (word *)image.steps + 4 * i;
        step[0] = (word)kernels[step[0]];
    }
    const word towards_zero = 3 << 22;
    __asm__ volatile("msr fpcr, %0" : : "r"(towards_zero));
    mmref_walk_alone(image.steps, image.count, image.shares, 0);
    if (mode() != towards_zero) return 7;
    if (!flushes()) return 6;
    void *logits = (void *)image.logits, *alone = malloc(image.logits_bytes);
    memcpy(alone, logits, image.logits_bytes);
    mmref_prepare(image.team);
    for (word i = 1; i < image.shares; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, (void *)image.team)) return 4;
    }
    int status = 0;
    for (int turn = 0; turn < 20; turn++) {
        memset(logits, 0, image.logits_bytes);
        mmref_lead(image.team, image.steps, image.count, image.shares, 0);
        if (mode() != towards_zero) return 7;
        status |= memcmp(alone, logits, image.logits_bytes) != 0;
    }
    FILE *result = fopen(argv[2], "wb");
    if (!result || fwrite(logits, image.logits_bytes, 1, result) != 1 || fclose(result)) return 5;
    return status;
}
