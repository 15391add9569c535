// Where a sweep's files go, and what an interrupted one has done already.
#pragma once

#include <filesystem>
#include <string>

#include "results/record.hpp"
#include "run/options.hpp"

namespace mixlane::bench {

// Makes the folder if need be and proves that a file can be made in it. Throws io_error naming it.
void require_writable(const std::filesystem::path& folder);

// The result file of one quantisation, without records.
ResultFile empty_result(const BenchOptions& options, const std::string& stamp, QuantFormat format);

// The stamp of the latest sweep below options.out with the same command, commit and host if it was interrupted; "" if there
// is none to go on with. `environment` is this run's.
std::string interrupted_stamp(const BenchOptions& options, const std::map<std::string, std::string>& environment);

// The stored file of that sweep if it is there, else `fresh`.
ResultFile stored_or(const BenchOptions& options, ResultFile fresh);

const Record* find_record(const ResultFile& file, int tokens, const std::string& workload);

std::filesystem::path trace_folder(const BenchOptions& options, const ResultFile& file);
std::filesystem::path log_path(const BenchOptions& options, const std::string& stamp);

// The present second, or the next one that no sweep has: each has its log from its first moment on, so two sweeps begun in
// one second don't share their files.
std::string unused_stamp(const BenchOptions& options);

}  // namespace mixlane::bench
