// Values that follow from tensors which stay as they are: a module's buffers, the edges of a graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace equipot {

// Remembers a value for as long as its tensors live and are not written to. Those made in inference mode do not
// count what is written to them; `get` remembers values of theirs only if they are known to be constant.
template <class Value>
class TensorCache {
 public:
  TensorCache(size_t capacity, bool constant) : capacity_(capacity), constant_(constant) {}

  template <class Make>
  std::shared_ptr<const Value> get(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& key,
                                   const Make& make) {
    const std::lock_guard<std::recursive_mutex> guard(mutex_);
    std::erase_if(entries_, [](const Entry& entry) {
      for (const auto& source : entry.sources)
        if (source.expired()) return true;
      return false;
    });
    std::vector<uint32_t> versions;
    for (const at::Tensor& tensor : tensors) {
      if (tensor.is_inference() && !constant_) return std::make_shared<const Value>(make());
      versions.push_back(tensor.is_inference() ? 0 : uint32_t(tensor._version()));
    }
    for (const Entry& entry : entries_)
      if (entry.key == key && entry.versions == versions && same(entry, tensors)) return entry.value;
    Entry entry{{}, versions, key, std::make_shared<const Value>(make())};
    for (const at::Tensor& tensor : tensors) entry.sources.emplace_back(tensor.getIntrusivePtr());
    if (entries_.size() == capacity_) entries_.pop_front();
    entries_.push_back(entry);
    return entry.value;
  }

 private:
  using Source = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    std::vector<Source> sources;  // they keep the address of a tensor from being used again
    std::vector<uint32_t> versions;
    std::vector<int64_t> key;
    std::shared_ptr<const Value> value;
  };

  static bool same(const Entry& entry, const std::vector<at::Tensor>& tensors) {
    for (size_t n = 0; n < tensors.size(); ++n)
      if (entry.sources[n]._unsafe_get_target() != tensors[n].unsafeGetTensorImpl()) return false;
    return true;
  }

  const size_t capacity_;
  const bool constant_;
  std::recursive_mutex mutex_;
  std::deque<Entry> entries_;
};

}  // namespace equipot
