#include <CLI/CLI.hpp>

#include "run/options.hpp"

namespace mixlane::bench {
namespace {

constexpr const char* kFooter =
    R"(On the CPU all ranks run a layer; on a GPU the stages of --stages run alone on one device (docs/bench.md).

Every cell (quant x tokens x workload) is checked against the reference before it is timed. One sample: all ranks pass a
gate together, the layer runs; the value is the slowest rank's time since the gate opened. Sampling ends when the 95 %
interval of the median is narrow enough (--target) or the time is up ("not converged").

Writes OUT/results_<stamp>/<model>__q<quant>.json, OUT/traces_<stamp>/<model>__q<quant>/*.json (open them in
https://ui.perfetto.dev) and OUT/sweep_<stamp>.log. A sweep that was interrupted goes on when the same command is run again.

Examples:
  mixlane bench
  mixlane bench --model deepseek-v3 --quant fp8 --tokens 1,16,64 --ranks 8
  mixlane bench --workload balanced,zipf:1.2,hot_expert,hot_rank,ragged --tokens 64
  mixlane bench --model my_model.json --variant experts=experts.reference
  mixlane bench --model mixtral-8x7b --checkpoint ~/Mixtral-8x7B-v0.1 --layer 3
  torchrun --no-python --nproc-per-node 4 mixlane bench --tokens 64
  mixlane bench --device cuda --stages align --variant align=all --mode eager,graph --cache hot,cold
  mixlane bench --device cuda --stages experts --model deepseek-v3 --quant fp8 --ranks 8 --checkpoint ~/DeepSeek-V3 --layer 5
  mixlane bench --device cuda --stages dispatch,combine --tokens 1,128,4096 --dispatch latency,throughput,naive,nccl_a2a)";

void declare_sweep(CLI::App& command, BenchArguments& a) {
  const char* group = "What";
  command.add_option("--model", a.model, "catalogue name (see `mixlane models`) or a JSON file")
      ->group(group)
      ->capture_default_str();
  command.add_option("--quant", a.quant, "none, fp8, fp8_channel, mxfp4, mxfp4_fp8")
      ->delimiter(',')
      ->group(group)
      ->capture_default_str();
  command
      .add_option_function<std::vector<int>>(
          "--tokens",
          [&a](const std::vector<int>& tokens) {
            a.tokens = tokens;
            a.has_tokens = true;
          },
          "tokens per rank [1,16,64,256; GPU 1,8,64,512,4096,16384]")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->group(group);
  command
      .add_option_function<std::vector<std::string>>(
          "--workload",
          [&a](const std::vector<std::string>& names) {
            a.workload = names;
            a.has_workload = true;
          },
          "routing skew: balanced, uniform, zipf:<exponent>, hot_expert, hot_rank, ragged, one_expert (stages alone) "
          "[balanced]")
      ->delimiter(',')
      ->group(group);
  command.add_option("--experts", a.experts, "number of experts instead of the model's")
      ->check(CLI::Range(1, 1024))
      ->group(group);
  command.add_option("--topk", a.topk, "experts per token instead of the model's")->check(CLI::Range(1, 32))->group(group);
  command
      .add_option("--checkpoint", a.checkpoint,
                  "folder of safetensors with the weights (GPU: of the experts stage); random ones without")
      ->group(group);
  command.add_option("--layer", a.checkpoint_layer, "layer of the checkpoint")
      ->check(CLI::NonNegativeNumber)
      ->group(group)
      ->capture_default_str();
  command.add_option("--hidden", a.hidden, "recorded hidden rows, .npy [tokens, hidden]")->group(group);
  command.add_option("--logits", a.logits, "recorded router logits, .npy [tokens, experts]")->group(group);
  command.add_option("--seed", a.seed, "of weights, activations and routing")->group(group)->capture_default_str();
}

void declare_layer(CLI::App& command, BenchArguments& a) {
  const char* group = "How";
  command
      .add_option("--ranks", a.ranks,
                  "ranks, started here; under torchrun, mpirun or srun theirs count [4]. GPU: that share the experts [1; "
                  "dispatch, combine: one per GPU]")
      ->check(CLI::Range(1, 64))
      ->group(group);
  command.add_option("--threads", a.threads, "threads per rank; 0 = cores / ranks")
      ->check(CLI::Range(0, 4096))
      ->group(group)
      ->capture_default_str();
  command.add_option("--device", a.device, "cpu, cuda or hip, with an index if it is not 0: cuda:1")
      ->group(group)
      ->capture_default_str();
  command
      .add_option(
          "--wire", a.wire,
          "dispatch carries auto, bf16, fp8_1x128 or fp8_row (a layer: of quant fp8 and mxfp4_fp8, fp8_channel), mxfp4")
      ->group(group)
      ->capture_default_str();
  command.add_option("--combine-wire", a.combine_wire, "combine carries bf16, fp8_1x128, f32 or f64")
      ->group(group)
      ->capture_default_str();
  command.add_option("--capacity", a.capacity, "window rows per pair of ranks; 0 = the most tokens")
      ->check(CLI::NonNegativeNumber)
      ->group(group)
      ->capture_default_str();
  command
      .add_option("--variant", a.variants,
                  "implementation of a stage, as stage=id; repeatable. GPU: several, stage=id,id or stage=all")
      ->group(group);
  command.add_flag("--list-variants", a.list_variants, "print the stages and their implementations")->group(group);
  command.add_option("--deadline", a.deadline_s, "seconds to wait for a peer [30]")
      ->check(CLI::Range(0.05, 3600.0))
      ->group(group);
  command.add_flag("--mask", a.mask, "leave a rank that does not answer out and go on")->group(group);
}

void declare_stages(CLI::App& command, BenchArguments& a) {
  const char* group = "Stages alone (GPU)";
  command
      .add_option("--stages,--stage", a.stages,
                  "routing, quant, dequant, align, chain (routing, quant and align in a row), experts [these]; "
                  "dispatch, combine: ranks on all GPUs")
      ->delimiter(',')
      ->group(group);
  command.add_option("--mode", a.mode, "eager: the host enqueues each call; graph: calls are captured and replayed [graph]")
      ->delimiter(',')
      ->group(group);
  command.add_flag("--kernel-times", a.kernel_times, "profile the kernels of each row too, in calls of their own")
      ->group(group);
  StageOptionTexts& texts = a.stage_options_text;
  command.add_option("--align-block", texts.align_block, "align: rows per block [128]")->delimiter(',')->group(group);
  command.add_option("--id-type", texts.id_type, "routing, align: i32, i64 [i32]")->delimiter(',')->group(group);
  command.add_option("--logits-type", texts.logits_type, "routing: f32, bf16, f16 [f32]")->delimiter(',')->group(group);
  command
      .add_option("--quant-group", texts.quant_group,
                  "quant, dequant: 1x128, row, 128x128, 1x32 [what --quant takes; 1x128]")
      ->delimiter(',')
      ->group(group);
  command.add_option("--quant-type", texts.quant_type, "values of quant, dequant: bf16, f16, f32 [bf16]")
      ->delimiter(',')
      ->group(group);
  command.add_option("--quant-scales", texts.quant_scales, "scales of quant, dequant in memory by: rows, columns [rows]")
      ->delimiter(',')
      ->group(group);
  command.add_option("--experts-output", texts.experts_output, "experts: a row per pairs, tokens (weighted sums) [pairs]")
      ->delimiter(',')
      ->group(group);
  command.add_option("--batch-invariant", texts.batch_invariant, "experts: off, on [off]")->delimiter(',')->group(group);
}

void declare_exchange(CLI::App& command, BenchArguments& a) {
  const char* group = "Dispatch and combine (GPU)";
  ExchangeOptionTexts& texts = a.exchange_text;
  command
      .add_option("--dispatch", texts.dispatch,
                  "ways to exchange rows, side by side: auto, variants of the library without the stage in front, naive and "
                  "nccl_a2a (NCCL) [auto]")
      ->delimiter(',')
      ->group(group);
  command
      .add_option("--combine-rows", texts.combine_rows,
                  "what combine gets: reduced (a row per received row), pairs (a row per expert) [reduced]")
      ->delimiter(',')
      ->group(group);
  command
      .add_option(
          "--input", texts.input,
          "what dispatch gets where the wire is not bf16: bf16 (quantised on the way), wire (quantised before) [bf16]")
      ->delimiter(',')
      ->group(group);
  command.add_flag("--overlap", texts.overlap, "time a round of both beside matrix products too: how much of it they hide")
      ->group(group);
  command.add_option("--multiprocessors", texts.multiprocessors, "how many a call may keep busy; 0 = all [0]")
      ->delimiter(',')
      ->group(group);
  command
      .add_option(
          "--padded-to", texts.padded_to,
          "rows of dispatch's tensors, of which as many as there are tokens count, by a number on the device; 0 = no "
          "other rows")
      ->check(CLI::NonNegativeNumber)
      ->group(group)
      ->capture_default_str();
}

void declare_measuring(CLI::App& command, BenchArguments& a) {
  const char* group = "Measuring";
  command.add_option("--min-time", a.min_time_s, "least seconds of samples per cell [0.3; GPU, per row 0.02]")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--max-time", a.max_time_s, "most seconds of samples per cell [3; GPU, per row 0.2]")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--max-samples", a.max_samples, "most samples per cell or row")
      ->check(CLI::Range(1, 1 << 20))
      ->group(group)
      ->capture_default_str();
  command.add_option("--target", a.target, "half the 95 % interval of the median, relative, at which sampling ends")
      ->check(CLI::Range(0.0001, 1.0))
      ->group(group)
      ->capture_default_str();
  command.add_option("--peak-time", a.peak_time_s, "seconds of measuring the machine's peaks; 0 = no speed of light")
      ->check(CLI::Range(0.0, 600.0))
      ->group(group)
      ->capture_default_str();
  command.add_option("--cache", a.cache, "hot, or cold: caches are flushed before each sample; GPU: hot,cold for both")
      ->delimiter(',')
      ->group(group)
      ->capture_default_str();
}

void declare_output(CLI::App& command, BenchArguments& a) {
  const char* group = "Output";
  command.add_option("--out", a.out, "folder of the results")->group(group)->capture_default_str();
  command.add_option("--json", a.json, "- : print the result files on stdout, everything else on stderr")->group(group);
  command.add_flag("--fresh", a.fresh, "start anew even if the same sweep was interrupted")->group(group);
  command.add_flag("--quiet", a.quiet, "no progress and no tables, only where the results are")->group(group);
  command.add_flag("--no-trace", a.no_trace, "write no timelines")->group(group);
}

}  // namespace

void declare(CLI::App& command, BenchArguments& arguments) {
  command.footer(kFooter);
  declare_sweep(command, arguments);
  declare_layer(command, arguments);
  declare_stages(command, arguments);
  declare_exchange(command, arguments);
  declare_measuring(command, arguments);
  declare_output(command, arguments);
}

}  // namespace mixlane::bench
