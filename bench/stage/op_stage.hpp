// A stage that is one call of one op.
#pragma once

#include "core/registry.hpp"
#include "stage/stage.hpp"

namespace mixlane::bench {

template <class Args>
using SelectVariant = const Variant<Args>& (*)(const Context&, const Args&);
template <class Args>
using CallOp = void (*)(Context&, const Args&, Stream);

template <class Args>
class OpStage : public DeviceStage {
 public:
  std::string automatic() const override { return std::string(select_(context_, with_variant("auto", 0)).info.id); }

  std::string refusal(const std::string& variant) const override {
    try {
      select_(context_, with_variant(variant, 0));
      return "";
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) throw;
      return error.what();
    }
  }

  void enqueue(const std::string& variant, Stream stream, int set) override {
    call_(context_, with_variant(variant, set), stream);
  }

  // All but the variant.
  virtual Args args(int set) const = 0;

 protected:
  OpStage(Context& context, SelectVariant<Args> select, CallOp<Args> call)
      : context_(context), select_(select), call_(call) {}

  Context& context_;

 private:
  Args with_variant(std::string_view variant, int set) const {
    Args result = args(set);
    result.variant = variant;
    return result;
  }

  SelectVariant<Args> select_;
  CallOp<Args> call_;
};

}  // namespace mixlane::bench
