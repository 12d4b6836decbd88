// Products of float32 matrices on AMX's tiles, as exact as on vectors and at twice their rate.
//
// AMX multiplies bfloat16, whose significand has 8 bits, and adds up in float32, sixteen times as fast as vectors do in
// float32. A float32 is a sum of three bfloat16, x = x1 + x2 + x3, each the nearest to what is left. Of the nine products of
// two such sums,
//
//   x y ~ x3 y1 + x2 y2 + x1 y3 + x2 y1 + x1 y2 + x1 y1,
//
// three are left out, which together are below 2^-25 |x y|: half of what rounding to float32 may cost. So a product of
// matrices takes six, with a sum in float32, the small ones first. The last pieces of a number below 2^-100 count as
// zero, since AMX takes denormal numbers for zero; an infinite factor comes out as NaN.
//
// The factors lie as a product reads them: a left factor has each piece of a row as whole blocks of 32 numbers, a right
// factor the three pieces of one block after the other, so that each tile of it that is loaded serves up to three products.
//
// Whether the processor and the system have AMX turns out when the library gets ready (library.cpp); until then, and
// without, no product is given to tiles.
#pragma once

#include <climits>

#include "tile.h"

namespace seqpyramid {

// Whether products of matrices of T may run on tiles: there is code for it.
#if defined(__AMX_BF16__) && defined(__AVX512BW__)
#define SEQPYRAMID_TILES
template <class T>
constexpr bool ON_TILES = std::is_same_v<T, float>;
#else
template <class T>
constexpr bool ON_TILES = false;
#endif

using Bf16 = uint16_t;  // its bits

constexpr long TILE = 16;                  // rows of a tile; columns of one of sums
constexpr long TILE_DEPTH = 32;            // bfloat16 in a row of a tile
constexpr long TILE_SIZE = TILE * TILE_DEPTH;
constexpr long PIECES = 3;
constexpr long TILED_ROWS = 2 * TILE;      // rows of a left factor at most

// Rows from which on products run on tiles; below, vectors are faster.
constexpr long WORTH_TILES = 12;
inline long fewest_tiled_rows = LONG_MAX;  // WORTH_TILES, or more than there ever are: no tiles

inline bool tiles_run() { return fewest_tiled_rows == WORTH_TILES; }

// Blocks of TILE_DEPTH that hold n.
constexpr long depth_blocks(long n) { return (n + TILE_DEPTH - 1) / TILE_DEPTH; }

// What a row of a left factor of depth K takes: an odd number of cache lines, so that the rows of a tile do not share sets.
constexpr long left_stride(long K) { return (PIECES * depth_blocks(K) | 1) * TILE_DEPTH; }

// Blocks of depth that a product goes over.
struct Depth {
  long first, last;
};

#if defined(SEQPYRAMID_TILES)

// The tiles of this thread, all of full size, for as long as this lives.
class TileSession {
 public:
  TileSession() {
    if (!tiles_run()) return;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) shape.row_bytes[tile] = 64, shape.rows[tile] = TILE;
    _tile_loadconfig(&shape);
  }
  ~TileSession() {
    if (tiles_run()) _tile_release();
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// The compiler does not know what memory a tile is loaded from.
SEQPYRAMID_INLINE void memory_is_written() { asm volatile("" ::: "memory"); }

// x1, x2, x3 of each lane, in the upper halves.
SEQPYRAMID_INLINE void split(Vector<float> x, __m512i (&piece)[PIECES]) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(int(0xffff0000u));
  SEQPYRAMID_UNROLL
  for (int p = 0; p < 2; ++p) {
    piece[p] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
    x -= Vector<float>(_mm512_castsi512_ps(piece[p]));
  }
  piece[2] = _mm512_and_si512(_mm512_castps_si512(x), upper);  // has digits there only where it is denormal
}

// The upper halves of two vectors' lanes, one vector after the other.
SEQPYRAMID_INLINE __m512i upper_halves(__m512i first, __m512i second) {
  alignas(64) static constexpr uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                   33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(odd), second);
}

// The upper halves of two vectors' lanes, lane by lane side by side: two rows of a right factor.
SEQPYRAMID_INLINE __m512i paired_halves(__m512i first, __m512i second) {
  return _mm512_or_si512(_mm512_srli_epi32(first, 16), second);
}

// Row of a left factor of depth K, from memory that has whole blocks.
SEQPYRAMID_INLINE void split_row(long K, const float* from, Bf16* row) {
  const long width = depth_blocks(K) * TILE_DEPTH;
  for (long k = 0; k < width; k += TILE_DEPTH) {
    __m512i a[PIECES], b[PIECES];
    split(load(from + k), a), split(load(from + k + TILE), b);
    SEQPYRAMID_UNROLL
    for (int p = 0; p < PIECES; ++p) _mm512_store_si512(row + p * width + k, upper_halves(a[p], b[p]));
  }
}

// The right factor of products.
template <class T>
class RightFactor {
 public:
  RightFactor() = default;

  // at(k, tile): the 16 numbers of row k and of columns 16 tile, ...; called for k < K.
  template <class At>
  RightFactor(long K, long columns, At&& at)
      : blocks_(depth_blocks(K)), tiles_(columns / TILE), data_(size_t(blocks_ * PIECES * tiles_ * TILE_SIZE)) {
    for (long tile = 0; tile < tiles_; ++tile) {
      const long first = tile / 2 * 2, width = together(first);
      for (long k = 0; k < K; k += 2) {
        __m512i a[PIECES], b[PIECES];
        split(at(k, tile), a), split(k + 1 < K ? at(k + 1, tile) : Vector<float>{}, b);
        Bf16* const to = data_.data() + first * blocks_ * PIECES * TILE_SIZE +
                         (k / TILE_DEPTH * PIECES * width + tile - first) * TILE_SIZE + k % TILE_DEPTH * TILE;
        for (long p = 0; p < PIECES; ++p) _mm512_store_si512(to + p * width * TILE_SIZE, paired_halves(a[p], b[p]));
      }
    }
  }

  long blocks() const { return blocks_; }
  Depth depth() const { return {0, blocks_}; }
  long tiles() const { return tiles_; }

  // How many tiles stand side by side from an even one on: two, but for the last.
  long together(long tile) const { return std::min(2L, tiles_ - tile); }

  // Where a product with them begins to read.
  const Bf16* at(long tile) const { return data_.data() + tile * blocks_ * PIECES * TILE_SIZE; }

 private:
  long blocks_ = 0, tiles_ = 0;
  Buffer<Bf16> data_;
};

// Tiles 0 to 3 (two rows of two) from memory, and back.
template <int ROWS, int COLUMNS>
SEQPYRAMID_INLINE void load_sums(const float* c, long c_row) {
  _tile_loadd(0, c, c_row * 4);
  if constexpr (COLUMNS == 2) _tile_loadd(1, c + TILE, c_row * 4);
  if constexpr (ROWS == 2) _tile_loadd(2, c + TILE * c_row, c_row * 4);
  if constexpr (ROWS == 2 && COLUMNS == 2) _tile_loadd(3, c + TILE * c_row + TILE, c_row * 4);
}

template <int ROWS, int COLUMNS>
SEQPYRAMID_INLINE void store_sums(float* c, long c_row) {
  _tile_stored(0, c, c_row * 4);
  if constexpr (COLUMNS == 2) _tile_stored(1, c + TILE, c_row * 4);
  if constexpr (ROWS == 2) _tile_stored(2, c + TILE * c_row, c_row * 4);
  if constexpr (ROWS == 2 && COLUMNS == 2) _tile_stored(3, c + TILE * c_row + TILE, c_row * 4);
}

// The six products of pieces: tiles 0 to 3 (two rows of two) += tiles 4 and 5 times 6 and 7.
template <int ROWS, int COLUMNS, class LoadLeft, class LoadRight, class Meanwhile>
SEQPYRAMID_INLINE void multiply_pieces(LoadLeft&& load_left, LoadRight&& load_right, Meanwhile& meanwhile) {
  const auto add = [&] {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (COLUMNS == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROWS == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (ROWS == 2 && COLUMNS == 2) _tile_dpbf16ps(3, 5, 7);
    meanwhile();
  };
  load_left(2), load_right(0), add();
  load_left(1), add();
  load_right(1), add();
  load_left(0), add();
  load_right(2), add();
  load_right(0), add();
}

template <int ROWS, int COLUMNS, class Meanwhile>
void multiply_tiles(const RightFactor<float>& right, Depth depth, long tile, const Bf16* left, long stride, float* c,
                    long c_row, bool add, Meanwhile& meanwhile) {
  memory_is_written();
  if (add) {
    load_sums<ROWS, COLUMNS>(c, c_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const long width = right.blocks() * TILE_DEPTH, together = right.together(tile) * TILE_SIZE;
  const Bf16 *a = left + depth.first * TILE_DEPTH, *b = right.at(tile) + depth.first * PIECES * together;
  for (long k = depth.first; k < depth.last; ++k, a += TILE_DEPTH, b += PIECES * together)
    multiply_pieces<ROWS, COLUMNS>(
        [&](int p) {
          _tile_loadd(4, a + p * width, stride * 2);
          if constexpr (ROWS == 2) _tile_loadd(5, a + p * width + TILE * stride, stride * 2);
        },
        [&](int p) {
          _tile_loadd(6, b + p * together, 64);
          if constexpr (COLUMNS == 2) _tile_loadd(7, b + p * together + TILE_SIZE, 64);
        },
        meanwhile);
  store_sums<ROWS, COLUMNS>(c, c_row);
  memory_is_written();
}

// c (up to 32 rows, c_row apart, and tiles [first, last) of columns, `first` even) = or += left * right over some blocks
// of depth; all rows of a tile are written.
template <class Meanwhile = Nothing>
void multiply(long rows, const Bf16* left, const RightFactor<float>& right, Depth depth, long first, long last,
              float* c, long c_row, bool add, Meanwhile&& meanwhile = {}) {
  const long stride = left_stride(right.blocks() * TILE_DEPTH);
  for (long tile = first; tile < last; tile += 2, c += 2 * TILE) {
    const bool two = tile + 1 < last;
    if (rows > TILE)
      two ? multiply_tiles<2, 2>(right, depth, tile, left, stride, c, c_row, add, meanwhile)
          : multiply_tiles<2, 1>(right, depth, tile, left, stride, c, c_row, add, meanwhile);
    else
      two ? multiply_tiles<1, 2>(right, depth, tile, left, stride, c, c_row, add, meanwhile)
          : multiply_tiles<1, 1>(right, depth, tile, left, stride, c, c_row, add, meanwhile);
  }
}

// 16 x 16 numbers of four bytes, turned.
SEQPYRAMID_INLINE void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// Rows of numbers as the transposed left factor of a product over the rows: tiles [column / 16][piece], rows past the
// last count as zero.
inline void split_transposed(long rows, long columns, const float* from, long stride, Bf16* to) {
  for (long column = 0; column < columns; column += TILE, to += PIECES * TILE_SIZE) {
    __m512i pairs[PIECES][16];
    for (long row = 0; row < TILED_ROWS; row += 2) {
      __m512i a[PIECES], b[PIECES];
      split(row < rows ? load(from + row * stride + column) : Vector<float>{}, a);
      split(row + 1 < rows ? load(from + (row + 1) * stride + column) : Vector<float>{}, b);
      for (int p = 0; p < PIECES; ++p) pairs[p][row / 2] = paired_halves(a[p], b[p]);
    }
    for (int p = 0; p < PIECES; ++p) {
      transpose(pairs[p]);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + p * TILE_SIZE + i * TILE_DEPTH, pairs[p][i]);
    }
  }
}

// Two rows of one or two vectors, into the left factor and the right one of split_both.
template <int VECTORS>
SEQPYRAMID_INLINE void split_pair(const float* first, const float* second, long width, Bf16* left, long stride,
                                  Bf16* right) {
  __m512i a[2][PIECES] = {}, b[2][PIECES] = {};
  SEQPYRAMID_UNROLL
  for (int v = 0; v < VECTORS; ++v) {
    split(load(first + v * TILE), a[v]), split(second ? load(second + v * TILE) : Vector<float>{}, b[v]);
    SEQPYRAMID_UNROLL
    for (int p = 0; p < PIECES; ++p)
      _mm512_store_si512(right + (v * PIECES + p) * TILE_SIZE, paired_halves(a[v][p], b[v][p]));
  }
  SEQPYRAMID_UNROLL
  for (int p = 0; p < PIECES; ++p) {
    _mm512_store_si512(left + p * width, upper_halves(a[0][p], a[1][p]));
    _mm512_store_si512(left + stride + p * width, upper_halves(b[0][p], b[1][p]));
  }
}

// Rows 2 pair and 2 pair + 1 (or none: zeros) of numbers, `columns` of them, whole vectors: as rows of the left factor of
// one product, and of the right factor of another over the rows: tiles [column / 16][piece].
inline void split_both(long pair, long columns, const float* first, const float* second, Bf16* left, Bf16* right) {
  const long stride = left_stride(columns), width = depth_blocks(columns) * TILE_DEPTH;
  left += 2 * pair * stride, right += pair * TILE_DEPTH;
  for (long column = 0; column < columns; column += TILE_DEPTH) {
    const float *const one = first + column, *const two = second ? second + column : nullptr;
    Bf16* const tile = right + column / TILE * PIECES * TILE_SIZE;
    if (column + TILE_DEPTH <= columns)
      split_pair<2>(one, two, width, left + column, stride, tile);
    else
      split_pair<1>(one, two, width, left + column, stride, tile);
  }
}

// Pairs of rows from one on, of a right factor over the rows, count as zeros.
inline void clear_pairs(long pair, long columns, Bf16* right) {
  for (long tile = 0; pair < TILE && tile < columns / TILE * PIECES; ++tile)
    std::memset(right + tile * TILE_SIZE + pair * TILE_DEPTH, 0, size_t(TILE - pair) * TILE_DEPTH * sizeof(Bf16));
}

template <int ROWS, int COLUMNS, class Meanwhile>
void add_over_rows(const Bf16* left, const Bf16* right, float* c, long c_row, Meanwhile& meanwhile) {
  memory_is_written();
  load_sums<ROWS, COLUMNS>(c, c_row);
  multiply_pieces<ROWS, COLUMNS>(
      [&](int p) {
        _tile_loadd(4, left + p * TILE_SIZE, 64);
        if constexpr (ROWS == 2) _tile_loadd(5, left + (PIECES + p) * TILE_SIZE, 64);
      },
      [&](int p) {
        _tile_loadd(6, right + p * TILE_SIZE, 64);
        if constexpr (COLUMNS == 2) _tile_loadd(7, right + (PIECES + p) * TILE_SIZE, 64);
      },
      meanwhile);
  store_sums<ROWS, COLUMNS>(c, c_row);
  memory_is_written();
}

// c += left^T right over 32 rows, as split_transposed and split_both have left them; in tiles.
template <class Meanwhile = Nothing>
void add_product_over_rows(long left_tiles, long right_tiles, const Bf16* left, const Bf16* right, float* c, long c_row,
                           Meanwhile&& meanwhile = {}) {
  for (long i = 0; i < left_tiles; i += 2)
    for (long j = 0; j < right_tiles; j += 2) {
      const Bf16 *const a = left + i * PIECES * TILE_SIZE, *const b = right + j * PIECES * TILE_SIZE;
      float* const to = c + i * TILE * c_row + j * TILE;
      if (i + 1 < left_tiles)
        j + 1 < right_tiles ? add_over_rows<2, 2>(a, b, to, c_row, meanwhile)
                            : add_over_rows<2, 1>(a, b, to, c_row, meanwhile);
      else
        j + 1 < right_tiles ? add_over_rows<1, 2>(a, b, to, c_row, meanwhile)
                            : add_over_rows<1, 1>(a, b, to, c_row, meanwhile);
    }
}

#else

class TileSession {
 public:
  TileSession() {}
};

template <class T>
class RightFactor {};

#endif

}  // namespace seqpyramid
