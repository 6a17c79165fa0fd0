// SPDX-License-Identifier: Apache-2.0
//
// A library that answers as NVML does, with what a test has set.
#include <cstring>

extern "C" {

unsigned long long fake_millijoules = 0;
unsigned fake_milliwatts = 0;
unsigned fake_celsius = 0;
unsigned fake_mhz = 0;
unsigned long long fake_reasons = 0;
int fake_energy_status = 0;
char fake_uuid[64] = "";
unsigned fake_gpus = 1;
unsigned long long fake_errors = 0;  // of the last GPU, uncorrected
int fake_link_down = -1;             // of the first GPU
int fake_peer_status = 0;            // between any two

int nvmlInit_v2() {
  return 0;
}
int nvmlShutdown() {
  return 0;
}
int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  static int gpu = 0;
  std::strncpy(fake_uuid, uuid, sizeof(fake_uuid) - 1);
  *device = &gpu;
  return 0;
}
int nvmlDeviceGetPowerUsage(void* /*device*/, unsigned* milliwatts) {
  *milliwatts = fake_milliwatts;
  return 0;
}
int nvmlDeviceGetTemperature(void* /*device*/, int sensor, unsigned* celsius) {
  *celsius = fake_celsius;
  return sensor;
}
int nvmlDeviceGetClockInfo(void* /*device*/, int clock, unsigned* mhz) {
  *mhz = fake_mhz;
  return clock == 1 ? 0 : 2;
}
int nvmlDeviceGetTotalEnergyConsumption(void* /*device*/, unsigned long long* millijoules) {
  *millijoules = fake_millijoules;
  return fake_energy_status;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = fake_gpus;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  static char gpus[8];
  *device = &gpus[index];
  return index < fake_gpus ? 0 : 2;
}
// nvmlPciInfo_t ends in 32 bytes with the address, behind one of 16 and five numbers.
int nvmlDeviceGetPciInfo_v3(void* device, char* info) {
  void* first = nullptr;
  nvmlDeviceGetHandleByIndex_v2(0, &first);
  constexpr int kAddress = 16 + 5 * 4;
  std::strcpy(info + kAddress, device == first ? "00000000:3B:00.0" : "00000000:AF:00.0");
  return 0;
}
int nvmlDeviceGetMaxClockInfo(void* /*device*/, int clock, unsigned* mhz) {
  *mhz = 1980;
  return clock == 1 ? 0 : 2;
}
int nvmlDeviceGetTotalEccErrors(void* device, int type, int counter, unsigned long long* errors) {
  void* last = nullptr;
  nvmlDeviceGetHandleByIndex_v2(fake_gpus - 1, &last);
  *errors = device == last && type == 1 && counter == 0 ? fake_errors : 0;
  return 0;
}
int nvmlDeviceGetNvLinkState(void* device, unsigned link, int* active) {
  void* first = nullptr;
  nvmlDeviceGetHandleByIndex_v2(0, &first);
  *active = device == first && static_cast<int>(link) == fake_link_down ? 0 : 1;
  return link < 4 ? 0 : 2;
}
int nvmlDeviceGetP2PStatus(void* /*a*/, void* /*b*/, int /*what*/, int* status) {
  *status = fake_peer_status;
  return 0;
}
// nvmlDeviceGetCurrentClocksThrottleReasons is missing, as in drivers that do not know it.
}
