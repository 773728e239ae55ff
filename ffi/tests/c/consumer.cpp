// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later
// A C++17 program: a handle that closes itself, and a lambda as log function.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <vfio_fast.h>

namespace {

void check(bool condition, const char *what)
{
    if (!condition) {
        std::fprintf(stderr, "%s: %s\n", what, vfio_fast_last_error());
        std::exit(1);
    }
}

struct Close {
    void operator()(vfio_fast *vf) const { check(vfio_fast_close(&vf) == 0, "close"); }
};
using Handle = std::unique_ptr<vfio_fast, Close>;

template <typename T> T sized()
{
    T value{};
    value.size = sizeof(T);
    return value;
}

} // namespace

int main()
{
    std::vector<std::string> messages;
    auto sim = sized<vfio_fast_sim_config>();
    sim.fail_nth = 1;
    sim.fail_errno = EPERM;

    auto config = sized<vfio_fast_config>();
    config.backend = VFIO_FAST_BACKEND_SIM;
    config.sim = &sim;
    config.log_level = VFIO_FAST_LOG_DEBUG;
    config.log_opaque = &messages;
    config.log = [](void *opaque, std::uint32_t, const char *message) {
        static_cast<std::vector<std::string> *>(opaque)->emplace_back(message);
    };

    vfio_fast *raw = nullptr;
    check(vfio_fast_open(&config, &raw) == 0, "open");
    Handle vf(raw);

    alignas(4096) static unsigned char page[4096];
    auto region = sized<vfio_fast_region>();
    region.flags = VFIO_FAST_REGION_WRITE | VFIO_FAST_REGION_EXACT;
    region.length = sizeof(page);
    region.hva = reinterpret_cast<std::uintptr_t>(page);

    check(vfio_fast_map_region(vf.get(), &region) == -EPERM, "the first call fails");
    check(!messages.empty(), "and says so");
    check(vfio_fast_map_region(vf.get(), &region) == 0, "the second does not");

    auto stats = sized<vfio_fast_stats>();
    check(vfio_fast_get_stats(vf.get(), &stats) == 0, "stats");
    check(stats.mapped_bytes == sizeof(page), "one page is mapped");

    const std::string version = std::to_string(VFIO_FAST_VERSION_MAJOR) + "." +
                                std::to_string(VFIO_FAST_VERSION_MINOR) + "." +
                                std::to_string(VFIO_FAST_VERSION_PATCH);
    check(version == vfio_fast_version(), "the header's version is the library's");
    return 0;
}
