#include "form.inl"

template void equipot::center_pass<double>(const Plan<double>&, const Arrays<double>&, const int64_t*, int64_t);
template void equipot::neighbor_pass<double>(const Plan<double>&, const Arrays<double>&, const int64_t*, int64_t);
