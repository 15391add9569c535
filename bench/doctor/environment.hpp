// What a measurement depends on beside the code: stored in every result file and shown by `mixlane doctor`.
#pragma once

#include <map>
#include <string>

namespace mixlane::bench {

// host, os, kernel, cpu, cores, cgroup_cores, instruction_sets, l3_cache, virtual_machine, governor, memory,
// memory_available, huge_pages, load, compiler, build, mixlane, commit, onednn, openmpi, libc, fmt, json. A probe that finds
// nothing leaves "unknown", or "none" where that is an answer.
std::map<std::string, std::string> capture_environment();

}  // namespace mixlane::bench
