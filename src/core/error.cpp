#include "core/error.hpp"

namespace mixlane {

std::string_view name(ErrorCode code) {
  switch (code) {
    case ErrorCode::ok: return "ok";
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::config_mismatch: return "config_mismatch";
    case ErrorCode::bad_expert_id: return "bad_expert_id";
    case ErrorCode::nan_logits: return "nan_logits";
    case ErrorCode::capacity_overflow: return "capacity_overflow";
    case ErrorCode::peer_timeout: return "peer_timeout";
    case ErrorCode::rank_masked: return "rank_masked";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::io_error: return "io_error";
    case ErrorCode::bad_format: return "bad_format";
    case ErrorCode::missing_component: return "missing_component";
    case ErrorCode::internal: return "internal";
  }
  return "unknown";
}

Error::Error(ErrorCode code, const std::string& message)
    : std::runtime_error(fmt::format("{}: {}", name(code), message)), code_(code) {}

std::string describe(const Status& status) {
  const Status& s = status;
  switch (s.code) {
    case ErrorCode::ok: return "";
    case ErrorCode::bad_expert_id:
      return fmt::format("rank {}: expert id {} at token {} is outside -1..{} ({} such pairs); they were dropped", s.rank,
                         s.got, s.token, s.expected - 1, s.failures);
    case ErrorCode::nan_logits:
      return fmt::format(
          "rank {}: NaN among the logits of token {} ({} such tokens); check the router's input, or set "
          "nan_policy to lowest",
          s.rank, s.token, s.failures);
    case ErrorCode::capacity_overflow:
      return fmt::format(
          "rank {}: {} rows for rank {} but the window holds {}; {} rows from token {} on were not sent; "
          "raise capacity to {}",
          s.rank, s.got, s.peer, s.expected, s.failures, s.token, s.got);
    case ErrorCode::peer_timeout:
      return fmt::format("rank {}: no answer from rank {} for {} ms (epoch expected {}, got {}); it is gone or stuck",
                         s.rank, s.peer, s.waited_us / 1000, s.expected, s.got);
    case ErrorCode::rank_masked:
      return fmt::format("rank {}: rank {} gave this rank up after {} ms and went on without it", s.rank, s.peer,
                         s.waited_us / 1000);
    case ErrorCode::internal:
      if (s.peer >= 0)
        return fmt::format(
            "rank {}: what lies in slot {} of rank {}'s rows is not what rank {} sent in epoch {}{} ({} such rows)", s.rank,
            s.token, s.peer, s.peer, s.expected,
            s.got == s.expected ? std::string() : fmt::format(" but of epoch {}", s.got), s.failures);
      return fmt::format(
          "rank {}: the output of token {} is not the sum of what the ranks sent in epoch {} ({} such tokens)", s.rank,
          s.token, s.expected, s.failures);
    default:
      return fmt::format("rank {}: {} (peer {}, token {}, expected {}, got {})", s.rank, name(s.code), s.peer, s.token,
                         s.expected, s.got);
  }
}

void throw_if_failed(const Status& status) {
  if (!status.ok()) throw Error(status.code, describe(status));
}

void record(Status& into, const Status& failure) {
  if (failure.ok()) return;
  if (into.ok()) {
    into = failure;
    into.failures = std::max(failure.failures, 1);
  } else if (into.code == failure.code) {
    into.failures += std::max(failure.failures, 1);
  }
}

void deliver(const Status& status, Status* to) {
  if (to) {
    record(*to, status);
  } else {
    throw_if_failed(status);
  }
}

}  // namespace mixlane
