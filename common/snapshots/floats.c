/* Floats, made smaller by what is alike in them: the exponents.

   Of an item of two or four bytes, turned left by one bit, the first byte is the exponent of a bfloat16 or of a single
   (of a half float: its exponent and three bits more). Trained weights need two to three bits for it, and all of the
   rest. So the exponents are stored as a canonical Huffman code of at most CODE_MOST bits, in STREAMS streams that a
   processor decodes side by side, and the other bytes as they are, one plane after the other.

   Stored: code lengths of all bytes, four bits each | how many bytes come before the first item | these | the planes |
           the bytes after the last item | bytes of each stream (32 bits) | the streams | GUARD zeros.
   Words are little-endian, and so must the machine's be. `floats.py` calls it, and can decode without it. */

#include <stdint.h>
#include <string.h>

#define SYMBOLS 256
#define CODE_MOST 10
#define TABLE (1 << CODE_MOST)
#define STREAMS 8
#define AT_ONCE 5 /* codes that fit into a word beside the 7 bits by which it is off: 5 * 10 + 7 < 64 */
#define GUARD 8
#define RUN 4 /* codes that are looked up together */
#ifdef __x86_64__
#define FOR_WHAT_IS_THERE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_WHAT_IS_THERE
#endif
#define WORTH_RUNS (1 << 12)
#define LENGTHS_BYTES (SYMBOLS / 2)
#define HEAD_BYTES (LENGTHS_BYTES + 1 + 4 * STREAMS + GUARD)
#define LOOK_BYTES 2048 /* of a chunk's middle, to see where its items begin */

typedef uint16_t Entry; /* what a code stands for, and in the lower byte its length */

static inline uint64_t word_at(const uint8_t *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

/* Where the part of a stream begins in `count` items that are shared out among all. */
static size_t share(size_t count, int stream)
{
    return count * (size_t)stream / STREAMS;
}

FOR_WHAT_IS_THERE
static void split(const uint8_t *plain, size_t count, int item_bytes, uint8_t *first, uint8_t *planes)
{
    if (item_bytes == 2) {
        for (size_t i = 0; i < count; i++) {
            uint16_t item;
            memcpy(&item, plain + 2 * i, sizeof item);
            item = (uint16_t)(item << 1 | item >> 15);
            first[i] = (uint8_t)(item >> 8);
            planes[i] = (uint8_t)item;
        }
        return;
    }
    uint8_t *second = planes, *third = planes + count, *fourth = planes + 2 * count;
    for (size_t i = 0; i < count; i++) {
        uint32_t item;
        memcpy(&item, plain + 4 * i, sizeof item);
        item = item << 1 | item >> 31;
        first[i] = (uint8_t)(item >> 24);
        second[i] = (uint8_t)(item >> 16);
        third[i] = (uint8_t)(item >> 8);
        fourth[i] = (uint8_t)item;
    }
}

FOR_WHAT_IS_THERE
static void join(const uint8_t *first, const uint8_t *planes, size_t count, int item_bytes, uint8_t *plain)
{
    if (item_bytes == 2) {
        for (size_t i = 0; i < count; i++) {
            uint16_t item = (uint16_t)(first[i] << 8 | planes[i]);
            item = (uint16_t)(item >> 1 | item << 15);
            memcpy(plain + 2 * i, &item, sizeof item);
        }
        return;
    }
    const uint8_t *second = planes, *third = planes + count, *fourth = planes + 2 * count;
    for (size_t i = 0; i < count; i++) {
        uint32_t item = (uint32_t)first[i] << 24 | (uint32_t)second[i] << 16 | (uint32_t)third[i] << 8 | fourth[i];
        item = item >> 1 | item << 31;
        memcpy(plain + 4 * i, &item, sizeof item);
    }
}

static void count_all(const uint8_t *symbols, size_t count, uint32_t counts[SYMBOLS])
{
    uint32_t tables[8][SYMBOLS] = {0}; /* the same symbol often comes twice in a row, and would wait for itself */
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t eight = word_at(symbols + i);
        for (int table = 0; table < 8; table++)
            tables[table][eight >> 8 * table & 255]++;
    }
    for (; i < count; i++)
        tables[0][symbols[i]]++;
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        counts[symbol] = 0;
        for (int table = 0; table < 8; table++)
            counts[symbol] += tables[table][symbol];
    }
}

/* Where the first item begins. A chunk is cut anywhere; the byte that takes few values again and again is an exponent's,
   and the last one of an item. */
static size_t first_item(const uint8_t *plain, size_t bytes, int item_bytes)
{
    uint16_t tables[4][SYMBOLS] = {0};
    uint64_t alike[4] = {0};
    size_t look = bytes < LOOK_BYTES ? bytes : LOOK_BYTES, from = (bytes - look) / 2 / item_bytes * item_bytes;
    for (size_t i = 0; i < look; i++)
        tables[i & (item_bytes - 1)][plain[from + i]]++;
    int most = 0;
    for (int place = 0; place < item_bytes; place++) {
        for (int symbol = 0; symbol < SYMBOLS; symbol++)
            alike[place] += (uint64_t)tables[place][symbol] * tables[place][symbol];
        if (alike[place] >= alike[most])
            most = place;
    }
    return (most + 1) % item_bytes;
}

/* Huffman's: the two rarest become one, until one is left. At least two symbols count. Gives the greatest depth. */
static int depths(const uint32_t counts[SYMBOLS], uint8_t lengths[SYMBOLS])
{
    int leaves[SYMBOLS], parent[2 * SYMBOLS], n = 0;
    uint64_t weight[2 * SYMBOLS];
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        lengths[symbol] = 0;
        if (!counts[symbol])
            continue;
        int at = n++; /* sorted, the rarest first */
        for (; at && counts[leaves[at - 1]] > counts[symbol]; at--)
            leaves[at] = leaves[at - 1];
        leaves[at] = symbol;
    }
    for (int leaf = 0; leaf < n; leaf++)
        weight[leaf] = counts[leaves[leaf]];
    int leaf = 0, inner = n, end = n;
    while (n - leaf + end - inner > 1) {
        weight[end] = 0;
        for (int child = 0; child < 2; child++) {
            int rarest = inner == end || (leaf < n && weight[leaf] <= weight[inner]) ? leaf++ : inner++;
            weight[end] += weight[rarest];
            parent[rarest] = end;
        }
        end++;
    }
    uint8_t depth[2 * SYMBOLS];
    int deepest = 0;
    depth[end - 1] = 0;
    for (int node = end - 2; node >= 0; node--) {
        depth[node] = depth[parent[node]] + 1;
        if (node < n) {
            lengths[leaves[node]] = depth[node];
            deepest = depth[node] > deepest ? depth[node] : deepest;
        }
    }
    return deepest;
}

/* As short as they can be, and none longer than a table takes: rare symbols are taken for less rare until it fits. */
static void code_lengths(const uint32_t of[SYMBOLS], uint8_t lengths[SYMBOLS])
{
    uint32_t counts[SYMBOLS];
    int different = 0;
    memcpy(counts, of, sizeof counts);
    for (int symbol = 0; symbol < SYMBOLS; symbol++)
        different += counts[symbol] > 0;
    for (int symbol = 0; different < 2; symbol++) /* a code of one word is none */
        if (!counts[symbol])
            counts[symbol] = 1, different++;
    while (depths(counts, lengths) > CODE_MOST)
        for (int symbol = 0; symbol < SYMBOLS; symbol++)
            if (counts[symbol])
                counts[symbol] = counts[symbol] / 4 + 1;
}

static uint32_t turned_round(uint32_t code, int length)
{
    uint32_t turned = 0;
    for (int bit = 0; bit < length; bit++)
        turned |= (code >> bit & 1) << (length - 1 - bit);
    return turned;
}

/* The first code of each length; 0 when the lengths are not those of a whole code. */
static int first_codes(const uint8_t lengths[SYMBOLS], uint32_t first[CODE_MOST + 1])
{
    uint32_t many[CODE_MOST + 1] = {0}, code = 0;
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        if (lengths[symbol] > CODE_MOST)
            return 0;
        many[lengths[symbol]]++;
    }
    many[0] = 0;
    for (int length = 1; length <= CODE_MOST; length++) {
        code = (code + many[length - 1]) << 1;
        first[length] = code;
    }
    return code + many[CODE_MOST] == TABLE;
}

/* A symbol's code in the highest bits, and its length in the lowest. */
typedef uint64_t Code;

/* Codes one after the other, the first in the lowest bits. */
typedef struct {
    uint64_t bits;
    unsigned held;
} Codes;

static inline Codes with(Codes codes, const uint8_t *symbols, int count, const Code code_of[SYMBOLS])
{
    uint64_t high = 0, lengths = 0; /* the later, the higher; of what is below them nothing counts */
    for (int i = 0; i < count; i++) {
        Code code = code_of[symbols[i]];
        high = high >> (code & 63) | code;
        lengths += code;
    }
    unsigned length = lengths & 63;
    return (Codes){codes.bits | high >> (64 - length) << codes.held, codes.held + length};
}

/* Whole bytes of them to `*to`, which comes after these then. */
static inline Codes flushed(Codes codes, uint8_t **to)
{
    memcpy(*to, &codes.bits, sizeof codes.bits);
    *to += codes.held >> 3;
    return (Codes){codes.bits >> (codes.held & ~7u), codes.held & 7};
}

FOR_WHAT_IS_THERE
static uint8_t *encode_stream(const uint8_t *symbols, size_t count, const Code code_of[SYMBOLS], uint8_t *to)
{
    Codes codes = {0, 0};
    size_t i = 0;
    for (; i + AT_ONCE <= count; i += AT_ONCE)
        codes = flushed(with(codes, symbols + i, AT_ONCE, code_of), &to);
    for (; i < count; i++)
        codes = flushed(with(codes, symbols + i, 1, code_of), &to);
    *to = (uint8_t)codes.bits;
    return to + (codes.held > 0);
}

/* A code for each symbol that has a length; the lengths go to `to`. */
static void write_table(const uint8_t lengths[SYMBOLS], Code code_of[SYMBOLS], uint8_t *to)
{
    uint32_t next[CODE_MOST + 1];
    first_codes(lengths, next);
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        int length = lengths[symbol];
        code_of[symbol] = length ? (Code)turned_round(next[length]++, length) << (64 - length) | length : 0;
        to[symbol / 2] = symbol % 2 ? to[symbol / 2] | length << 4 : length;
    }
}

/* `bytes` of floats of `item_bytes` (2 or 4) into `to`, which has room for HEAD_BYTES and GUARD more than these;
   `scratch` has room for a byte of each item. Gives how many bytes they became, or 0 where nothing is gained. */
size_t floats_encode(const uint8_t *plain, size_t bytes, int item_bytes, uint8_t *to, uint8_t *scratch)
{
    if (bytes < LENGTHS_BYTES)
        return 0;
    size_t before = first_item(plain, bytes, item_bytes), count = (bytes - before) / item_bytes;
    size_t low = count * (item_bytes - 1), after = (bytes - before) % item_bytes;
    uint8_t *planes = to + LENGTHS_BYTES + 1 + before, *sizes = planes + low + after, *at = sizes + 4 * STREAMS;
    to[LENGTHS_BYTES] = (uint8_t)before;
    memcpy(planes - before, plain, before);
    split(plain + before, count, item_bytes, scratch, planes);
    memcpy(planes + low, plain + bytes - after, after);

    Code code_of[SYMBOLS];
    uint32_t counts[SYMBOLS];
    uint8_t lengths[SYMBOLS];
    uint64_t bits = 0;
    count_all(scratch, count, counts);
    code_lengths(counts, lengths);
    for (int symbol = 0; symbol < SYMBOLS; symbol++)
        bits += (uint64_t)counts[symbol] * lengths[symbol];
    if (bits / 8 + STREAMS + HEAD_BYTES >= count)
        return 0;
    write_table(lengths, code_of, to);
    for (int n = 0; n < STREAMS; n++) {
        size_t from = share(count, n);
        uint8_t *end = encode_stream(scratch + from, share(count, n + 1) - from, code_of, at);
        uint32_t size = (uint32_t)(end - at);
        memcpy(sizes + 4 * n, &size, sizeof size);
        at = end;
    }
    memset(at, 0, GUARD);
    return at + GUARD - to;
}

static int read_table(const uint8_t *from, Entry table[TABLE])
{
    uint8_t lengths[SYMBOLS];
    uint32_t next[CODE_MOST + 1];
    for (int symbol = 0; symbol < SYMBOLS; symbol++)
        lengths[symbol] = symbol % 2 ? from[symbol / 2] >> 4 : from[symbol / 2] & 15;
    if (!first_codes(lengths, next))
        return 0;
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        int length = lengths[symbol];
        if (length)
            for (uint32_t at = turned_round(next[length]++, length); at < TABLE; at += 1u << length)
                table[at] = (Entry)(symbol << 8 | length);
    }
    return 1;
}

/* Several codes that stand together in what a table looks at. */
typedef struct {
    uint32_t symbols;
    uint16_t count, length;
} Run;

static void make_runs(const Entry table[TABLE], Run runs[TABLE])
{
    for (uint32_t at = 0; at < TABLE; at++) {
        uint32_t symbols = 0, count = 0, length = 0;
        while (count < RUN) {
            Entry entry = table[at >> length];
            if (length + (entry & 15) > CODE_MOST)
                break;
            symbols |= (uint32_t)(entry >> 8) << 8 * count++;
            length += entry & 15;
        }
        runs[at] = (Run){symbols, (uint16_t)count, (uint16_t)length};
    }
}

/* One of the streams while it is decoded: its next bit and where it ends, and what of the symbols is still to come. */
typedef struct {
    uint64_t bit, end;
    uint8_t *to, *last;
} Stream;

/* May it look up a whole word of runs? It writes RUN symbols each time, whatever they are. */
static inline int has_room(const Stream *stream, uint64_t end)
{
    return stream->last - stream->to >= RUN * AT_ONCE && stream->bit <= end;
}

static inline void take_runs(Stream *stream, const uint8_t *from, const Run runs[TABLE])
{
    uint64_t word = word_at(from + (stream->bit >> 3)) >> (stream->bit & 7);
    uint8_t *to = stream->to;
    unsigned used = 0;
    for (int k = 0; k < AT_ONCE; k++) {
        Run run = runs[word & (TABLE - 1)];
        memcpy(to, &run.symbols, RUN);
        to += run.count;
        word >>= run.length;
        used += run.length;
    }
    stream->to = to;
    stream->bit += used;
}

/* Most of all streams, in turn: none waits for what its own last look has found. */
FOR_WHAT_IS_THERE
static void decode_runs(Stream streams[STREAMS], const uint8_t *from, uint64_t end, const Entry table[TABLE])
{
    Run runs[TABLE];
    make_runs(table, runs);
    for (;;) {
        for (int n = 0; n < STREAMS; n++)
            if (!has_room(&streams[n], end))
                goto alone;
        for (int n = 0; n < STREAMS; n++)
            take_runs(&streams[n], from, runs);
    }
alone:
    for (int n = 0; n < STREAMS; n++)
        while (has_room(&streams[n], end))
            take_runs(&streams[n], from, runs);
}

/* What is left of a stream; 0 when it is not as long as it says. */
static int decode_rest(Stream *stream, const uint8_t *from, uint64_t end, const Entry table[TABLE])
{
    while (stream->to < stream->last) {
        if (stream->bit > end)
            return 0;
        Entry entry = table[(word_at(from + (stream->bit >> 3)) >> (stream->bit & 7)) & (TABLE - 1)];
        *stream->to++ = entry >> 8;
        stream->bit += entry & 15;
    }
    return (stream->bit + 7) / 8 * 8 == stream->end;
}

/* The symbols of all streams, whose sizes are at `sizes`; 0 when these do not fill what is there up to `guard`. */
static int decode_streams(
    const uint8_t *from, const uint8_t *sizes, const uint8_t *guard, const Entry table[TABLE], uint8_t *to, size_t count)
{
    Stream streams[STREAMS];
    uint64_t bit = 8 * (uint64_t)(sizes + 4 * STREAMS - from), end = 8 * (uint64_t)(guard - from);
    for (int n = 0; n < STREAMS; n++) {
        uint32_t bytes;
        memcpy(&bytes, sizes + 4 * n, sizeof bytes);
        streams[n] = (Stream){bit, bit + 8 * (uint64_t)bytes, to + share(count, n), to + share(count, n + 1)};
        bit = streams[n].end;
    }
    if (bit != end)
        return 0;
    if (count >= WORTH_RUNS)
        decode_runs(streams, from, end, table);
    for (int n = 0; n < STREAMS; n++)
        if (!decode_rest(&streams[n], from, end, table))
            return 0;
    return 1;
}

/* What `floats_encode` made of `bytes` bytes, back into `plain`; `scratch` has room for a byte of each item. 0 when
   `from` is nothing that it makes. Never reads outside of `from` nor writes outside of `plain` and `scratch`. */
int floats_decode(
    const uint8_t *from, size_t size, int item_bytes, uint8_t *plain, size_t bytes, uint8_t *scratch)
{
    Entry table[TABLE];
    if (size < HEAD_BYTES || from[LENGTHS_BYTES] >= item_bytes || bytes < from[LENGTHS_BYTES])
        return 0;
    size_t before = from[LENGTHS_BYTES], count = (bytes - before) / item_bytes;
    size_t low = count * (item_bytes - 1), after = (bytes - before) % item_bytes;
    const uint8_t *planes = from + LENGTHS_BYTES + 1 + before, *sizes = planes + low + after;
    if (size < HEAD_BYTES + before + low + after || !read_table(from, table))
        return 0;
    if (!decode_streams(from, sizes, from + size - GUARD, table, scratch, count))
        return 0;
    memcpy(plain, planes - before, before);
    join(scratch, planes, count, item_bytes, plain + before);
    memcpy(plain + bytes - after, planes + low, after);
    return 1;
}
