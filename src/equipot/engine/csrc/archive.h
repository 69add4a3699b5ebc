// Checksums of a model file, a zip archive: torch reads weights with changed bytes without a word. Its code is compressed,
// and damage to that does not unpack.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

namespace equipot {

class Archive {
 public:
  explicit Archive(const std::string& path) : Archive(path, "") {
    if (std::FILE* file = std::fopen(path.c_str(), "rb")) {
      char part[1 << 16];
      for (size_t count; (count = std::fread(part, 1, sizeof part, file)) > 0;) bytes_.append(part, count);
      std::fclose(file);
    }
  }

  // From bytes; `path` stands in messages.
  Archive(const std::string& path, std::string bytes) : path_(path), bytes_(std::move(bytes)) {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
      table_[i] = value;
    }
  }

  // Throws std::runtime_error if the file is cut short or a byte of an entry has changed.
  void require_checksums() {
    size_t end = bytes_.size() < 22 ? 0 : bytes_.size() - 22;  // of central directory, without a comment
    while (end > 0 && number(end, 4) != 0x06054b50) --end;
    if (end == 0) fail("truncated, or not a model written by 'equipot deploy'");
    size_t entry = contents_ = number(end + 16, 4);
    for (uint32_t count = number(end + 10, 2); count > 0; --count) {
      if (number(entry, 4) != 0x02014b50) fail("damaged (its table of contents)");
      const uint32_t method = number(entry + 10, 2), expected = number(entry + 16, 4), size = number(entry + 20, 4);
      const uint32_t name_length = number(entry + 28, 2), local = number(entry + 42, 4);
      if (entry + 46 + name_length > bytes_.size()) fail("damaged (its table of contents)");
      const std::string name(bytes_, entry + 46, name_length);
      const size_t first = size_t(local) + 30 + number(local + 26, 2) + number(local + 28, 2);
      if (first + size > bytes_.size() || (method == 0 && crc32(first, size) != expected))
        fail("damaged (wrong checksum of '" + name + "')");
      // Without the name of the archive, which is that of the file when it was written.
      if (method == 0) stored_[name.substr(name.find('/') + 1)] = std::string_view(bytes_).substr(first, size);
      entry += 46 + name_length + number(entry + 30, 2) + number(entry + 32, 2);
    }
  }

  // Of the checksums of all entries, with their names and sizes (FNV-1a of the table of contents).
  uint64_t checksum() const {
    uint64_t hash = 14695981039346656037u;
    for (size_t at = contents_; at < bytes_.size(); ++at) hash = (hash ^ (unsigned char)bytes_[at]) * 1099511628211u;
    return hash;
  }

  // The bytes of an entry that is not compressed, or nullptr; after require_checksums, as long as this lives.
  const std::string_view* find(const std::string& name) const {
    const auto found = stored_.find(name);
    return found == stored_.end() ? nullptr : &found->second;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(path_ + ": " + what + ". Use an intact copy.");
  }

  uint32_t number(size_t at, int width) const {
    if (at + width > bytes_.size()) fail("truncated or damaged");
    uint32_t value = 0;
    for (int i = width - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes_[at + i]);
    return value;
  }

  uint32_t crc32(size_t first, size_t size) const {
    uint32_t value = ~0u;
    for (size_t i = first; i < first + size; ++i)
      value = table_[(value ^ static_cast<unsigned char>(bytes_[i])) & 0xFF] ^ (value >> 8);
    return ~value;
  }

  std::string path_, bytes_;
  size_t contents_ = 0;
  std::map<std::string, std::string_view> stored_;
  std::array<uint32_t, 256> table_{};
};

}  // namespace equipot
