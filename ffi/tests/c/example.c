/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
#include <stdio.h>
#include <stdlib.h>
#include <vfio_fast.h>

int main(void)
{
    /* With a real device: VFIO_FAST_BACKEND_TYPE1 and the VFIO container, or VFIO_FAST_BACKEND_IOMMUFD and an IOAS. */
    struct vfio_fast_config config = {.size = sizeof(config), .backend = VFIO_FAST_BACKEND_SIM};
    struct vfio_fast_region ram = {.size = sizeof(ram), .flags = VFIO_FAST_REGION_WRITE, .length = 64 << 20};
    struct vfio_fast_outcome outcome = {.size = sizeof(outcome)};
    struct vfio_fast *vf = NULL;
    void *memory = aligned_alloc(4096, ram.length);

    ram.hva = (uintptr_t)memory;
    if (vfio_fast_open(&config, &vf) < 0 || vfio_fast_begin(vf) < 0 || vfio_fast_map_region(vf, &ram) < 0 ||
        vfio_fast_commit(vf, &outcome) < 0)
        fprintf(stderr, "%s\n", vfio_fast_last_error());
    else
        printf("%u calls mapped %llu MiB\n", outcome.map_calls, (unsigned long long)outcome.map_bytes >> 20);
    if (vfio_fast_close(&vf) == 0)
        free(memory);
    return outcome.map_calls == 0;
}
