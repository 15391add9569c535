#include "report/format.hpp"

#include <algorithm>
#include <cmath>

#include "core/format.hpp"

namespace mixlane::bench {

std::string format_us(double us) {
  if (!(us > 0)) return "-";
  return fmt::format("{:.{}f}", us, us < 9.995 ? 2 : us < 999.95 ? 1 : 0);
}

std::string format_percent(double share) {
  return share > 0 ? fmt::format("{:.{}f}", share * 100, share < 0.0995 ? 1 : 0) : "-";
}

std::string format_bytes(double bytes) {
  for (const auto& [unit, size] : {std::pair{"TB", 1e12}, std::pair{"GB", 1e9}, std::pair{"MB", 1e6}, std::pair{"kB", 1e3}})
    if (bytes >= size) return fmt::format("{:.2f} {}", bytes / size, unit);
  return fmt::format("{:.0f} B", bytes);
}

std::vector<size_t> Table::widths() const {
  std::vector<size_t> widths(rows_.front().size(), 3);
  for (const auto& row : rows_)
    for (size_t column = 0; column < row.size(); ++column) widths[column] = std::max(widths[column], row[column].size());
  return widths;
}

bool Table::numeric(size_t column) const {
  return std::all_of(rows_.begin() + 1, rows_.end(), [&](const auto& row) {
    const std::string& cell = row[column];
    return cell.empty() || cell.find_first_not_of("0123456789.+-x% ") == std::string::npos;
  });
}

std::string Table::padded(const std::string& cell, size_t column, size_t width) const {
  return numeric(column) ? fmt::format("{:>{}}", cell, width) : fmt::format("{:<{}}", cell, width);
}

std::string Table::markdown() const {
  const std::vector<size_t> width = widths();
  std::string text;
  for (size_t row = 0; row < rows_.size(); ++row) {
    for (size_t column = 0; column < width.size(); ++column)
      text += "| " + padded(rows_[row][column], column, width[column]) + " ";
    text += "|\n";
    if (row > 0) continue;
    for (size_t column = 0; column < width.size(); ++column)
      text += "|" + std::string(width[column] + 1, '-') + (numeric(column) ? ":" : "-");
    text += "|\n";
  }
  return text;
}

std::string Table::plain() const {
  const std::vector<size_t> width = widths();
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t column = 0; column < width.size(); ++column) line += " " + padded(row[column], column, width[column]) + " ";
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace mixlane::bench
