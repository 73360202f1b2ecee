/* NVIDIA's driver as far as kernels, streams and graphs call it: prints what it is asked to do, and does nothing.
   Built as libcuda.so.1 by test_launch.py, so that the calls go through cuda.bindings as they would on a device. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuInit(unsigned flags) { return 0; }

int cuModuleLoadData(void **module, const char *image) {
    printf("load %.3s\n", image + 1);
    *module = (void *)0x11;
    return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    printf("function %p %s\n", module, name);
    *function = (void *)0x22;
    return 0;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    printf("launch %p %u %u %u %u %u %u %u %p %d:", function, x, y, z, bx, by, bz, shared, stream, extra != 0);
    for (int i = 0; i < 19; i++) /* two maps and an integer */
        printf(" %lld", i < 18 ? *(long long *)parameters[i] : *(int *)parameters[i]);
    printf("\n");
    return 0;
}

int cuStreamCreate(void **stream, unsigned flags) {
    printf("stream %u\n", flags);
    *stream = (void *)0x77;
    return flags == 1 ? 0 : 2;
}

int cuStreamDestroy_v2(void *stream) { printf("no stream %p\n", stream); return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { printf("capture %p %d\n", stream, mode); return 0; }

int cuStreamEndCapture(void *stream, void **graph) {
    printf("captured %p\n", stream);
    *graph = (void *)0x33;
    return 0;
}

int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    printf("instantiate %p %llu\n", graph, flags);
    *executable = (void *)0x44;
    return 0;
}

int cuGraphLaunch(void *executable, void *stream) { printf("replay %p %p\n", executable, stream); return 0; }
int cuGraphDestroy(void *graph) { printf("no graph %p\n", graph); return 0; }
int cuGraphExecDestroy(void *executable) { printf("no executable %p\n", executable); return 0; }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const char *endings[] = {"_v2", "WithFlags", ""};
    char whole[200];
    void *here = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    *function = 0;
    for (int i = 0; i < 3 && !*function; i++) {
        snprintf(whole, sizeof whole, "%s%s", name, endings[i]);
        *function = dlsym(here, whole);
    }
    if (status) *status = !*function;
    return *function ? 0 : 500;
}
