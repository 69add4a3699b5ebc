#include "form.inl"

template void equipot::center_pass<float>(const Plan<float>&, const Arrays<float>&, const int64_t*, int64_t);
template void equipot::neighbor_pass<float>(const Plan<float>&, const Arrays<float>&, const int64_t*, int64_t);
