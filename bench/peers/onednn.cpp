// oneDNN's batch and layer normalization behind a C interface that ctypes can call.  A primitive is
// created once, with its memory; only its execution is timed.
#include <dnnl.hpp>
#include <omp.h>

#include <cstdio>
#include <unordered_map>

using namespace dnnl;
using dims = memory::dims;
using flags = normalization_flags;

namespace {

struct call {
    engine eng{engine::kind::cpu, 0};
    stream queue{eng};
    primitive prim;
    std::unordered_map<int, memory> args;
};

// in the order of onednn.py
enum { FORWARD, INFERENCE, BACKWARD };
enum { SRC, DST, DIFF_DST, MEAN, VARIANCE, SCALE, SHIFT, DIFF_SCALE, DIFF_SHIFT };
const memory::data_type types[] = {memory::data_type::f32, memory::data_type::f16,
                                   memory::data_type::bf16};
const memory::format_tag tags[] = {memory::format_tag::nchw, memory::format_tag::nhwc,
                                   memory::format_tag::nChw16c, memory::format_tag::ab};

template <class forward, class backward>
void create(call &c, const memory::desc &md, const memory::desc &stats, int64_t channels, int pass,
            flags with, float eps, void **data) {
    const auto kind =
        pass == INFERENCE ? prop_kind::forward_inference : prop_kind::forward_training;
    const memory::desc vector({channels}, memory::data_type::f32, memory::format_tag::a);
    const auto at = [&](const memory::desc &d, int i) { return memory(d, c.eng, data[i]); };

    typename forward::primitive_desc fwd(c.eng, kind, md, md, eps, with);
    c.args = {{DNNL_ARG_SRC, at(md, SRC)},         {DNNL_ARG_DST, at(md, DST)},
              {DNNL_ARG_MEAN, at(stats, MEAN)},    {DNNL_ARG_VARIANCE, at(stats, VARIANCE)},
              {DNNL_ARG_SCALE, at(vector, SCALE)}, {DNNL_ARG_SHIFT, at(vector, SHIFT)}};
    c.prim = forward(fwd);
    if (pass != BACKWARD)
        return;
    c.prim.execute(c.queue, c.args); // the mean and the variance that backward reads
    c.queue.wait();
    typename backward::primitive_desc bwd(c.eng, prop_kind::backward, md, md, md, eps, with, fwd);
    c.args.erase(DNNL_ARG_DST);
    if (md.get_ndims() ==
        4) // layer normalization's backward wants it, batch normalization's refuses
        c.args.erase(DNNL_ARG_SHIFT);
    c.args.insert({{DNNL_ARG_DIFF_DST, at(md, DIFF_DST)},
                   {DNNL_ARG_DIFF_SRC, at(md, DST)},
                   {DNNL_ARG_DIFF_SCALE, at(vector, DIFF_SCALE)},
                   {DNNL_ARG_DIFF_SHIFT, at(vector, DIFF_SHIFT)}});
    c.prim = backward(bwd);
}

} // namespace

extern "C" {

void bench_version(int *out) {
    const dnnl_version_t *v = dnnl_version();
    out[0] = v->major, out[1] = v->minor, out[2] = v->patch;
}

void bench_set_threads(int n) { omp_set_num_threads(n); }

// NULL, and the reason in `error`, where oneDNN has no such primitive.
void *bench_create(int pass, int type, int tag, int ndims, const int64_t *shape, float eps,
                   void **data, char *error, int error_size) {
    call *c = nullptr;
    try {
        c = new call;
        const dims d(shape, shape + ndims);
        const memory::desc md(d, types[type], tags[tag]);
        flags with = flags::use_scale | flags::use_shift;
        if (ndims == 2) {
            const memory::desc stats({d[0]}, memory::data_type::f32, memory::format_tag::a);
            create<layer_normalization_forward, layer_normalization_backward>(
                *c, md, stats, d[1], pass, with, eps, data);
        } else {
            const memory::desc stats({d[1]}, memory::data_type::f32, memory::format_tag::a);
            if (pass == INFERENCE)
                with |= flags::use_global_stats;
            create<batch_normalization_forward, batch_normalization_backward>(
                *c, md, stats, d[1], pass, with, eps, data);
        }
        return c;
    } catch (const std::exception &e) {
        std::snprintf(error, error_size, "%s", e.what());
        delete c;
        return nullptr;
    }
}

int bench_execute(void *handle) {
    call *c = static_cast<call *>(handle);
    try {
        c->prim.execute(c->queue, c->args);
        c->queue.wait();
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}

void bench_destroy(void *handle) { delete static_cast<call *>(handle); }
}
