#include "gpu_groups.h"

#include <algorithm>
#include <map>

namespace equipot {
namespace {

// What the paths of one number of channels need of the registers that live through the loop over edges decides how
// many of them a warp can take. A double takes two registers.
int64_t register_limit(const GpuForm& form, int64_t width) {
  const int64_t values = form.pass == GpuPass::neighbor ? (form.mixed ? 20 : 40) : width > 1 ? 52 : 48;
  return form.single ? values : values / 2;
}

// Two channels to a thread share what does not depend on the channel, and load them at once, if they lie aligned.
// It takes warps that would be half empty otherwise; the mixed form and the table's gradient have no registers for it.
int64_t width_of(const Plan<double>& plan, const GpuForm& form, int64_t channels) {
  if (form.mixed || form.pass == GpuPass::table || channels <= warp_size) return 1;
  bool even = plan.dim_in % 2 == 0 && plan.dim_out % 2 == 0 && plan.num_weights % 2 == 0;
  for (const Coupling& coupling : plan.couplings)
    for (const Path& p : coupling.paths)
      if (p.channels == channels)
        even &= (p.channels | p.in_offset | p.weight_offset | p.out_offset | p.out_stride) % 2 == 0;
  return even ? 2 : 1;
}

// Adds a path to the group, in the bundle of its coupling.
void add(Group& group, const Coupling& coupling, const Path& path, GpuPass pass) {
  const auto same = [&](const InputBlock& block) { return block.offset == path.in_offset; };
  const auto block = std::find_if(group.blocks.begin(), group.blocks.end(), same);
  const int place = int(block - group.blocks.begin());
  if (block == group.blocks.end()) group.blocks.push_back({path.in_offset, coupling.l_in});
  if (group.bundles.empty() || group.bundles.back().coupling != &coupling) group.bundles.push_back({&coupling, {}});
  group.bundles.back().items.push_back({path, place, group.accumulators});
  if (pass == GpuPass::center) group.accumulators += components(coupling.l_out);
  if (pass == GpuPass::table) group.accumulators += 6;
}

// A sum for each component of the output, or six for each path: split in equal parts, paths of one coupling together.
std::vector<Group> by_accumulators(const Plan<double>& plan, const GpuForm& form, int64_t channels, int64_t width) {
  const auto needed = [&](const Coupling& coupling) {
    return width * (form.pass == GpuPass::center ? components(coupling.l_out) : 6);
  };
  const int64_t limit = register_limit(form, width);
  int64_t total = 0;
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths) total += path.channels == channels ? needed(coupling) : 0;
  const int64_t count = (total + limit - 1) / limit, fair = (total + count - 1) / count;
  std::vector<Group> groups;
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths) {
      if (path.channels != channels) continue;
      const int64_t taken = groups.empty() ? limit : width * groups.back().accumulators;
      if (taken >= fair || taken + needed(coupling) > limit) groups.push_back({channels, width});
      add(groups.back(), coupling, path, form.pass);
    }
  return groups;
}

// The neighbor pass keeps the neighbor's features and adds to their gradient: all paths from a block belong together,
// and those of one degree share their couplings.
std::vector<Group> by_blocks(const Plan<double>& plan, const GpuForm& form, int64_t channels, int64_t width) {
  std::map<int, std::vector<int64_t>> blocks;  // by degree
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths)
      if (auto& known = blocks[coupling.l_in];
          path.channels == channels && std::find(known.begin(), known.end(), path.in_offset) == known.end())
        known.push_back(path.in_offset);
  const int64_t limit = register_limit(form, width);
  std::map<int64_t, size_t> group_of;  // a block
  int64_t rows = limit;
  size_t count = 0;
  for (const auto& [degree, offsets] : blocks) {
    const int64_t each = (form.mixed ? 3 : 2) * width * components(degree);
    const int64_t all = each * int64_t(offsets.size());
    if (rows + all > limit) rows = limit;  // a group of their own
    for (int64_t offset : offsets) {
      if (rows + each > limit) ++count, rows = 0;
      rows += each;
      group_of[offset] = count - 1;
    }
  }
  std::vector<Group> groups(count, {channels, width});
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths)
      if (path.channels == channels) add(groups[group_of.at(path.in_offset)], coupling, path, form.pass);
  return groups;
}

}  // namespace

std::vector<Group> make_groups(const Plan<double>& plan, const GpuForm& form) {
  std::vector<int64_t> channels;
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths)
      if (std::find(channels.begin(), channels.end(), path.channels) == channels.end())
        channels.push_back(path.channels);
  std::vector<Group> all;
  for (int64_t each : channels) {
    const int64_t width = width_of(plan, form, each);
    const auto groups = form.pass == GpuPass::neighbor ? by_blocks(plan, form, each, width)
                                                       : by_accumulators(plan, form, each, width);
    all.insert(all.end(), groups.begin(), groups.end());
  }
  return all;
}

}  // namespace equipot
