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
// nvmlDeviceGetCurrentClocksThrottleReasons is missing, as in drivers that do not know it.
}
