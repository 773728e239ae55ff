/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The choices that make up a run: of a seed, or of a file that was saved when a run failed. */

#include "listener.h"

static uint64_t state;
static Choices *choices;
static bool from_file;

void input_is_in(Choices *memory)
{
    choices = memory;
}

void input_begin(uint64_t seed)
{
    state = (seed + 1) * 0x9e3779b97f4a7c15ULL;
    choices->used = 0;
    from_file = false;
}

bool input_read(const char *path)
{
    FILE *file = fopen(path, "rb");

    if (!file) {
        return false;
    }
    choices->given = fread(choices->bytes, 1, sizeof(choices->bytes), file);
    choices->used = 0;
    from_file = true;
    return !fclose(file);
}

bool input_save(const char *path)
{
    FILE *file = fopen(path, "wb");

    return file && fwrite(choices->bytes, 1, choices->used, file) == choices->used && !fclose(file);
}

bool input_is_over(void)
{
    return choices->used >= (from_file ? choices->given : MAX_CHOICES / 2);
}

static uint8_t next(void)
{
    if (from_file ? choices->used >= choices->given : choices->used >= MAX_CHOICES) {
        return 0;
    }
    if (!from_file) {
        /* xorshift64* */
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        choices->bytes[choices->used] = state * 0x2545f4914f6cdd1dULL >> 56;
    }
    return choices->bytes[choices->used++];
}

unsigned choose(unsigned n)
{
    unsigned value = n < 2 ? 0 : next();

    if (n > 256) {
        value = value << 8 | next();
    }
    return n ? value % n : 0;
}
