// Numbers and tables as text.
#pragma once

#include <string>
#include <vector>

namespace mixlane::bench {

// Microseconds with three to four significant digits: "4.10", "31.2", "1234".
std::string format_us(double us);
// "64" for 0.64; "-" for 0, which stands for "not known".
std::string format_percent(double share);
// "1.50 MB"; decimal units.
std::string format_bytes(double bytes);

// Columns as wide as their widest cell; numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() == 1; }
  std::string markdown() const;
  std::string plain() const;

 private:
  std::vector<size_t> widths() const;
  bool numeric(size_t column) const;
  std::string padded(const std::string& cell, size_t column, size_t width) const;

  std::vector<std::vector<std::string>> rows_;  // the header first; all of one length
};

}  // namespace mixlane::bench
