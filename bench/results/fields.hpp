// The members of every stored struct, once: writer and reader walk the same lists, so they can't disagree about a key.
// visit(key, member) is called in the order in which the file shows them; visit.since(schema, key, member) for members
// that older files have not.
#pragma once

#include <concepts>

#include "results/record.hpp"

namespace mixlane::bench {

// A Type or a const Type: the reader fills, the writer looks.
template <class T, class Type>
concept MaybeConst = std::same_as<std::remove_const_t<T>, Type>;

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<Statistic> auto& s) {
  visit("median_us", s.median_us);
  visit("p10_us", s.p10_us);
  visit("p90_us", s.p90_us);
  visit("min_us", s.min_us);
  visit("max_us", s.max_us);
  visit("n", s.n);
  visit("rel_half_width", s.rel_half_width);
  visit("converged", s.converged);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<Correctness> auto& c) {
  visit("passed", c.passed);
  visit("checked_tokens", c.checked_tokens);
  visit.maybe_nan("rel_error", c.rel_error);  // a NaN in the output makes the error one
  visit("tolerance", c.tolerance);
  visit("reference", c.reference);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<KernelTime> auto& k) {
  visit("variant", k.variant);
  visit("us", k.us);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<StageRecord> auto& s) {
  visit("stage", s.stage);
  visit("variant", s.variant);
  visit.since(2, "options", s.options);
  visit.since(2, "automatic", s.automatic);
  visit.since(2, "calls_per_sample", s.calls_per_sample);
  visit("time", s.time);
  visit("wait_us", s.wait_us);
  visit("bytes", s.bytes);
  visit("flops", s.flops);
  visit("logical_bytes", s.logical_bytes);
  visit("remote_bytes", s.remote_bytes);
  visit("sol_us", s.sol_us);
  visit("sol_share", s.sol_share);
  visit("bound", s.bound);
  visit.since(2, "correctness", s.correctness);
  visit.since(2, "kernels", s.kernels);
  visit("rank_median_us", s.rank_median_us);
  visit("samples_us", s.samples_us);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<Record> auto& r) {
  visit("tokens", r.tokens);
  visit("workload", r.workload);
  visit.since(2, "mode", r.mode);
  visit.since(2, "cache", r.cache);
  visit("correctness", r.correctness);
  visit("stages", r.stages);
  visit("rank_tokens", r.rank_tokens);
  visit("rank_rows", r.rank_rows);
  visit("expert_pairs", r.expert_pairs);
  visit("window_bytes", r.window_bytes);
  visit("weight_bytes", r.weight_bytes);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<Peaks> auto& p) {
  visit("copy_gbs", p.copy_gbs);
  visit("read_gbs", p.read_gbs);
  visit("exchange_gbs", p.exchange_gbs);
  visit("bf16_tflops", p.bf16_tflops);
  visit("f32_tflops", p.f32_tflops);
  visit.since(2, "fp8_tflops", p.fp8_tflops);
  visit.since(2, "launch_us", p.launch_us);
  visit.since(2, "graph_node_us", p.graph_node_us);
  visit.since(2, "peer_write_gbs", p.peer_write_gbs);
  visit.since(2, "peer_read_gbs", p.peer_read_gbs);
  visit.since(2, "copy_engine_gbs", p.copy_engine_gbs);
  visit.since(2, "flag_us", p.flag_us);
  visit("measured_at", p.measured_at);
  visit("skipped", p.skipped);
}

template <class Visitor>
void visit_fields(Visitor& visit, MaybeConst<ResultFile> auto& f) {
  visit("schema", f.schema);
  visit("stamp", f.stamp);
  visit("command", f.command);
  visit("model", f.model);
  visit("quant", f.quant);
  visit("unverified", f.unverified);
  visit("ranks", f.ranks);
  visit("seed", f.seed);
  visit("device", f.device);
  visit("environment", f.environment);
  visit("peaks", f.peaks);
  visit("complete", f.complete);
  visit("records", f.records);
}

}  // namespace mixlane::bench
