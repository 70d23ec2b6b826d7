/* MD5 of several messages at once (RFC 1321), a lane of a vector for each.

   MD5 is one long chain of dependent steps, so a processor does one message no faster than 0.8 GB/s. Eight of them side
   by side take the same time as one: 3.6 GB/s with nothing newer than SSE2. `lanes.py` calls it. */

#include <stdint.h>
#include <string.h>

#define LANES 8
#define BLOCK_BYTES 64
#define STEPS 64

typedef uint32_t words __attribute__((vector_size(4 * LANES)));
/* The same word of each lane's message or state. */

static const uint32_t SINES[STEPS] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};

static const int TURNS[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

static inline uint32_t word_of(const uint8_t *block, int i)
{
    uint32_t word;
    memcpy(&word, block + 4 * i, sizeof word);
    return word;
}

/* Takes `blocks[lane]` blocks, `most` at the most, at `from[lane]` into `state`: a, b, c and d of all lanes. A lane that
   has no more stays as it is, wherever it points. Words of MD5 are little-endian, and so must the machine's be. */
#ifdef __x86_64__
__attribute__((target_clones("arch=x86-64-v4", "default")))
#endif
void md5_take(uint32_t state[4][LANES], const uint8_t *const from[LANES], const uint32_t blocks[LANES], uint32_t most)
{
    words a, b, c, d, left;
    memcpy(&a, state[0], sizeof a);
    memcpy(&b, state[1], sizeof b);
    memcpy(&c, state[2], sizeof c);
    memcpy(&d, state[3], sizeof d);
    memcpy(&left, blocks, sizeof left);
    static const uint8_t nothing[BLOCK_BYTES];
    for (uint32_t n = 0; n < most; n++) {
        const uint8_t *at[LANES];
        for (int lane = 0; lane < LANES; lane++)
            at[lane] = n < blocks[lane] ? from[lane] + (uint64_t)n * BLOCK_BYTES : nothing;
        words message[16];
        for (int i = 0; i < 16; i++)
            message[i] = (words){word_of(at[0], i), word_of(at[1], i), word_of(at[2], i), word_of(at[3], i),
                                 word_of(at[4], i), word_of(at[5], i), word_of(at[6], i), word_of(at[7], i)};

        const words goes_on = (words)(left > n), a0 = a, b0 = b, c0 = c, d0 = d;
#pragma GCC unroll 64
        for (int i = 0; i < STEPS; i++) {
            words mixed;
            int word;
            if (i < 16)
                mixed = d ^ (b & (c ^ d)), word = i;
            else if (i < 32)
                mixed = c ^ (d & (b ^ c)), word = (5 * i + 1) % 16;
            else if (i < 48)
                mixed = b ^ c ^ d, word = (3 * i + 5) % 16;
            else
                mixed = c ^ (b | ~d), word = 7 * i % 16;
            const int turn = TURNS[i / 16][i % 4];
            const words sum = a + mixed + message[word] + SINES[i];
            a = d, d = c, c = b;
            b += sum << turn | sum >> (32 - turn);
        }
        a = a0 + (a & goes_on);
        b = b0 + (b & goes_on);
        c = c0 + (c & goes_on);
        d = d0 + (d & goes_on);
    }
    memcpy(state[0], &a, sizeof a);
    memcpy(state[1], &b, sizeof b);
    memcpy(state[2], &c, sizeof c);
    memcpy(state[3], &d, sizeof d);
}
