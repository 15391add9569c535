#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "doctor/best_rate.hpp"
#include "doctor/environment.hpp"
#include "doctor/examine.hpp"
#include "doctor/peaks.hpp"
#include "doctor/probes.hpp"
#include "doctor/streams.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"
#include "support/rank_threads.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::run_ranks;

TEST(Probes, ReadTheProcessor) {
  const char* x86 =
      "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu avx avx2 fma avx512f amx_bf16x avx512_bf16\n";
  EXPECT_EQ(cpu_model(x86), "Some CPU @ 2GHz");
  EXPECT_EQ(instruction_sets(x86), "avx avx2 fma avx512f avx512_bf16");
  const char* arm = "processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU part\t: 0xd40\n";
  EXPECT_EQ(cpu_model(arm), "0xd40");
  EXPECT_EQ(instruction_sets(arm), "asimd bf16 sve");
  EXPECT_EQ(cpu_model(""), "");
  EXPECT_EQ(instruction_sets("flags"), "");
}

TEST(Probes, ReadMemoryLimitsAndNames) {
  EXPECT_EQ(meminfo_bytes("MemTotal:       24576 kB\nMemAvailable:   12288 kB\n", "MemAvailable"), 12288.0 * 1024);
  EXPECT_EQ(meminfo_bytes("MemTotal: 1 kB\n", "MemAvailable"), 0);
  EXPECT_EQ(gibibytes(24.5 * (1 << 30)), "24.5 GiB");
  EXPECT_EQ(cgroup_cores("150000 100000\n"), 1.5);
  EXPECT_EQ(cgroup_cores("max 100000\n"), 0);
  EXPECT_EQ(cgroup_cores(""), 0);
  EXPECT_EQ(value_of("NAME=\"A\"\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME"), "Debian 12");
  EXPECT_EQ(value_of("MemTotalExtra: 3\n", "MemTotal"), "");
  EXPECT_EQ(probe_file("/nowhere/at/all"), "");
}

TEST(Environment, AnswersEveryQuestion) {
  const auto environment = capture_environment();
  for (const char* key : {"host",
                          "os",
                          "kernel",
                          "cpu",
                          "cores",
                          "cgroup_cores",
                          "instruction_sets",
                          "l3_cache",
                          "virtual_machine",
                          "governor",
                          "memory",
                          "memory_available",
                          "huge_pages",
                          "load",
                          "compiler",
                          "build",
                          "mixlane",
                          "commit",
                          "onednn",
                          "openmpi",
                          "libc",
                          "fmt",
                          "json"}) {
    ASSERT_TRUE(environment.count(key)) << key;
    EXPECT_FALSE(environment.at(key).empty()) << key;
  }
  EXPECT_EQ(environment.at("cores"), std::to_string(usable_cores()));
  EXPECT_GE(usable_cores(), 1);
  const std::string& commit = environment.at("commit");
  EXPECT_TRUE(commit == "unknown" || commit.find_first_not_of("0123456789abcdef") >= 12) << commit;
}

TEST(Streams, ReadEveryByteAndCopyEveryByte) {
  mixlane::test::Rng rng(3);
  alignas(64) static std::byte from[64 * 37], to[64 * 39];
  for (std::byte& byte : from) byte = std::byte(rng() & 0xff);
  uint64_t expected = 0, word = 0;
  for (size_t i = 0; i < sizeof from; i += 8) {
    std::memcpy(&word, from + i, 8);
    expected ^= word;
  }
  EXPECT_EQ(read_all(from, sizeof from), expected);
  from[64 * 36 + 63] ^= std::byte(1);
  EXPECT_NE(read_all(from, sizeof from), expected);
  std::memset(to, 0x5a, sizeof to);
  copy_streaming(to + 64, from, sizeof from);
  EXPECT_EQ(std::memcmp(to + 64, from, sizeof from), 0);
  EXPECT_EQ(to[63], std::byte(0x5a));
  EXPECT_EQ(to[64 * 38], std::byte(0x5a));
}

// Ranks that take 20 and 5 ms: the machine needs 20.
TEST(BestRate, LastsFromTheFirstStartToTheLastEnd) {
  std::vector<double> rates(2);
  std::vector<int> repetitions(2);
  run_ranks(2, [&](auto member) {
    Communicator& comm = *member;
    rates[comm.rank()] = best_rate(comm, 0.05, 1000, [&](int) {
      std::this_thread::sleep_for(std::chrono::milliseconds(comm.rank() == 0 ? 20 : 5));
      ++repetitions[comm.rank()];
    });
  });
  EXPECT_EQ(rates[0], rates[1]);
  EXPECT_LE(rates[0], 1000 / 0.020);
  EXPECT_GT(rates[0], 1000 / 0.200);
  EXPECT_EQ(repetitions[0], repetitions[1]);
  EXPECT_GE(repetitions[0], 4);
}

TEST(BestRate, OneRanksProblemIsEveryRanks) {
  std::vector<std::string> seen(3);
  run_ranks(3, [&](auto comm) { seen[comm->rank()] = first_problem(*comm, comm->rank() == 1 ? "no room" : ""); });
  EXPECT_EQ(seen, (std::vector<std::string>{"no room", "no room", "no room"}));
}

TEST(Peaks, AreMeasuredByAllRanksAlike) {
  std::vector<Peaks> peaks(2);
  run_ranks(2, [&](auto member) {
    Communicator& comm = *member;
    Context context({.num_threads = 1});
    peaks[comm.rank()] = measure_peaks(comm, context, {.seconds = 0.05, .machine_bytes = 8 << 20});
  });
  for (const double rate : {peaks[0].copy_gbs, peaks[0].read_gbs, peaks[0].exchange_gbs}) {
    EXPECT_GT(rate, 0.01);
    EXPECT_LT(rate, 1e5);
  }
  EXPECT_EQ(to_json(peaks[0]), to_json(peaks[1]));
  EXPECT_EQ(peaks[0].measured_at.size(), std::string("2026-09-30T10-12-33").size());
}

TEST(Peaks, OneRankExchangesNothing) {
  run_ranks(1, [&](auto member) {
    Communicator& comm = *member;
    Context context({.num_threads = 1});
    const Peaks peaks = measure_peaks(comm, context, {.seconds = 0.02, .machine_bytes = 1 << 20});
    EXPECT_EQ(peaks.exchange_gbs, 0);
    EXPECT_NE(std::find(peaks.skipped.begin(), peaks.skipped.end(), "exchange: one rank has no neighbour"),
              peaks.skipped.end());
    mixlane::test::expect_error(ErrorCode::invalid_argument, {"0 s"}, [&] { measure_peaks(comm, context, {.seconds = 0}); });
  });
}

const Finding& finding(const std::vector<Finding>& findings, const std::string& subject) {
  for (const Finding& f : findings)
    if (f.subject == subject) return f;
  throw std::out_of_range(subject);
}

TEST(Examine, AQuietCompleteMachineIsFine) {
  const std::map<std::string, std::string> environment = {{"host", "box"},
                                                          {"os", "Debian"},
                                                          {"kernel", "Linux 6"},
                                                          {"cpu", "Some CPU"},
                                                          {"cores", "8"},
                                                          {"cgroup_cores", "none"},
                                                          {"instruction_sets", "avx2 amx_bf16"},
                                                          {"memory", "64.0 GiB"},
                                                          {"memory_available", "60.0 GiB"},
                                                          {"load", "0.10"},
                                                          {"governor", "performance"},
                                                          {"onednn", "2.6.3 (loaded)"},
                                                          {"openmpi", "/usr/bin/mpirun"},
                                                          {"mixlane", "0.1.0"},
                                                          {"commit", "abc"},
                                                          {"compiler", "gcc 12"},
                                                          {"build", "Release"}};
  Peaks peaks;
  peaks.copy_gbs = 20;
  peaks.read_gbs = 15;
  peaks.exchange_gbs = 9;
  peaks.bf16_tflops = 2;
  peaks.f32_tflops = 1;
  const auto findings = examine(environment, peaks);
  for (const Finding& f : findings) EXPECT_EQ(f.level, Level::ok) << f.subject << ": " << f.text;
  EXPECT_EQ(finding(findings, "memory").text, "64.0 GiB, 60.0 GiB available");
  EXPECT_EQ(finding(findings, "exchange").text, "shared memory 9.0 GB/s delivered, all ranks at once");
  EXPECT_NE(to_text(findings).find("\n simd      avx2 amx_bf16"), std::string::npos) << to_text(findings);
}

TEST(Examine, SaysWhatDisturbsOrIsMissingAndWhatToDo) {
  const std::map<std::string, std::string> environment = {
      {"cores", "8"},      {"cgroup_cores", "1.5"},   {"memory_available", "3.0 GiB"},
      {"load", "4.00"},    {"governor", "powersave"}, {"onednn", "none"},
      {"openmpi", "none"}, {"build", "Debug"}};
  Peaks peaks;
  peaks.skipped = {"exchange: rank 1 has no 64 MB of memory", "bf16: no oneDNN"};
  const auto findings = examine(environment, peaks);
  const auto expect = [&](const char* subject, Level level, const char* advice) {
    const Finding& f = finding(findings, subject);
    EXPECT_EQ(f.level, level) << subject;
    EXPECT_NE(f.advice.find(advice), std::string::npos) << f.advice;
  };
  expect("cpu", Level::warn, "1.5 of them");
  expect("simd", Level::note, "emulated");
  expect("memory", Level::warn, "8 GiB");
  expect("load", Level::warn, "noisy");
  expect("clocks", Level::note, "cpupower");
  expect("onednn", Level::fail, "apt-get install");
  expect("openmpi", Level::note, "apt-get install");
  expect("mixlane", Level::warn, "cmake --preset cpu");
  expect("exchange", Level::note, "rank 1 has no 64 MB");
  expect("bf16", Level::warn, "no oneDNN");
}

}  // namespace
}  // namespace mixlane::bench
