/* A driver and compilers that do nothing, to see which are taken: -DDRIVER is the driver, -DMAJOR=.. -DMINOR=.. -DKNOWN=.. an NVRTC. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DRIVER
int cuDriverGetVersion(int* version) { return *version = atoi(getenv("DRIVER_VERSION")), 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
#define NOTHING(name) \
  int name(void) { return 0; }
NOTHING(cuInit) NOTHING(cuDeviceGet) NOTHING(cuDeviceGetName) NOTHING(cuDeviceGetAttribute) NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxSetCurrent) NOTHING(cuDevicePrimaryCtxRetain) NOTHING(cuModuleLoadDataEx) NOTHING(cuModuleGetFunction)
NOTHING(cuLaunchKernel) NOTHING(cuGetErrorString) NOTHING(cuStreamCreate) NOTHING(cuStreamDestroy_v2)
NOTHING(cuStreamSynchronize) NOTHING(cuStreamWaitEvent) NOTHING(cuEventCreate) NOTHING(cuEventDestroy_v2) NOTHING(cuEventRecord)
NOTHING(cuMemAlloc_v2) NOTHING(cuMemFree_v2) NOTHING(cuMemAllocHost_v2) NOTHING(cuMemFreeHost)
NOTHING(cuMemsetD8Async) NOTHING(cuMemGetInfo_v2) NOTHING(cuMemcpyHtoDAsync_v2) NOTHING(cuMemcpyDtoHAsync_v2)
#else
static const int known[] = {KNOWN};
static char said[100];

int nvrtcVersion(int* major, int* minor) { return *major = MAJOR, *minor = MINOR, 0; }
int nvrtcGetNumSupportedArchs(int* count) { return *count = sizeof known / sizeof *known, 0; }
int nvrtcGetSupportedArchs(int* to) { return memcpy(to, known, sizeof known), 0; }
int nvrtcCreateProgram(void) { return 0; }
int nvrtcCompileProgram(void* program, int count, const char* const* options) {
  return snprintf(said, sizeof said, "%d.%d %s", MAJOR, MINOR, options[0]), 0;
}
int nvrtcDestroyProgram(void) { return 0; }
int nvrtcGetProgramLogSize(void* program, size_t* size) { return *size = strlen(said), 0; }
int nvrtcGetProgramLog(void* program, char* to) { return memcpy(to, said, strlen(said)), 0; }
int nvrtcGetCUBINSize(void* program, size_t* size) { return *size = 5, 0; }
int nvrtcGetCUBIN(void* program, char* to) { return memcpy(to, "cubin", 5), 0; }
int nvrtcGetPTXSize(void* program, size_t* size) { return *size = 3, 0; }
int nvrtcGetPTX(void* program, char* to) { return memcpy(to, "ptx", 3), 0; }
const char* nvrtcGetErrorString(int error) { return "an error"; }
#endif
