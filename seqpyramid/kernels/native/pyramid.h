// Which states a TP-RNN layer aggregates, and when: the bookkeeping of sub-pyramids, by integers only.
//
// Steps are nodes of level 0. A sub-pyramid of L steps aggregates every g nodes of a level into one of the next as soon
// as they are there; its last step closes it: at each level what still waits is aggregated, full group or short, up to
// one top. A sequence that ends inside a sub-pyramid closes it for itself alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace seqpyramid {

// One aggregation: the nodes that wait at `level` become one of level + 1. With size 0 there is nothing to do, because
// the top of a sequence that leaves is there already.
struct Aggregation {
  long level, size;
  long first_source;      // in Pyramid::sources, where level > 0; else the last `size` steps
  long destination;       // a node
  long position;          // of the destination among those that wait at level + 1
  long emitted;           // its place among the next layer's inputs, or -1
  bool top;
};

// Aggregations [first, last) of a step.
struct Range {
  long first, last;
};

struct Pyramid {
  std::vector<Aggregation> aggregations;
  std::vector<long> sources;         // nodes
  std::vector<Range> common;         // of each step, for all running sequences
  std::vector<Range> leaving;        // of each step, for the sequences that end inside a sub-pyramid
  std::vector<long> position;        // of each step among those that wait
  std::vector<long> driver;          // the node that drives the step after it, or -1: the step itself
  std::vector<long> first_node;      // of each sub-pyramid, with keep
  long nodes = 0, levels = 0, group = 0;  // group: the most states that can be aggregated at once

  // With keep, every aggregate is a node of its own; without, those of one level and position share one.
  Pyramid(long time, long length, long granularity, long emitted_level, bool top_down, const int64_t* ends, long batch,
          bool keep)
      : group(std::min({granularity, length, time})), granularity_(granularity), keep_(keep) {
    std::vector<bool> someone_ends(size_t(time) + 1);
    for (long row = 0; row < batch; ++row) someone_ends[size_t(ends[row])] = true;
    Waiting waiting;
    long emitted = 0;
    for (long t = 0; t < time; ++t) {
      const long steps = t % length + 1;
      if (steps == 1) first_node.push_back(created_);
      position.push_back(waiting.steps++);
      Range now = begin();
      if (steps == length) {
        close(waiting, steps);
        aggregations.back().top = true;
        waiting = Waiting();
      } else {
        for (long level = 0; waiting.count(level) == granularity; ++level) aggregate(waiting, level);
      }
      end(now, common);
      for (long k = now.first; k < now.last; ++k)
        if (aggregations[size_t(k)].level + 1 == emitted_level) aggregations[size_t(k)].emitted = emitted++;
      driver.push_back(top_down && now.last > now.first ? aggregations.back().destination : -1);

      Range last = begin();
      if (steps < length && someone_ends[size_t(t) + 1]) {
        Waiting own = waiting;
        const long created = created_;
        close(own, steps);
        created_ = created;  // those who leave never meet the nodes made later: the numbers are free for both
        for (long k = last.first; k < long(aggregations.size()); ++k)
          if (aggregations[size_t(k)].level + 1 == emitted_level) aggregations[size_t(k)].emitted = emitted;
        const long top = needed_levels(steps);
        if (last.first == long(aggregations.size()))
          aggregations.push_back({top - 1, 0, 0, waiting.nodes[size_t(top) - 1].front(), 0, -1, true});
        aggregations.back().top = true;
        if (top < emitted_level) aggregations.back().emitted = emitted;
      }
      end(last, leaving);
    }
  }

  // The most nodes of so many sub-pyramids side by side, from one whose number is a multiple of theirs on.
  long most_nodes(long pyramids) const {
    long most = 0;
    for (size_t k = 0; k < first_node.size(); k += size_t(pyramids)) {
      const size_t next = k + size_t(pyramids);
      most = std::max(most, (next < first_node.size() ? first_node[next] : nodes) - first_node[k]);
    }
    return most;
  }

 private:
  struct Waiting {
    long steps = 0;
    std::vector<std::vector<long>> nodes;  // of level 1, 2, ...

    long count(long level) const {
      if (level == 0) return steps;
      return level <= long(nodes.size()) ? long(nodes[size_t(level) - 1].size()) : 0;
    }
  };

  Range begin() const { return {long(aggregations.size()), 0}; }
  void end(Range& range, std::vector<Range>& ranges) {
    range.last = long(aggregations.size());
    ranges.push_back(range);
  }

  // Levels between the steps and the top.
  long needed_levels(long steps) const {
    long level = 1;
    for (long reach = granularity_; reach < steps; reach *= granularity_) ++level;
    return level;
  }

  void close(Waiting& waiting, long steps) {
    const long last = needed_levels(steps);
    for (long level = 0; level < last; ++level)
      if (waiting.count(level)) aggregate(waiting, level);
  }

  void aggregate(Waiting& waiting, long level) {
    Aggregation made{level, waiting.count(level), long(sources.size()), 0, 0, -1, false};
    if (level == 0) {
      waiting.steps = 0;
    } else {
      std::vector<long>& nodes_here = waiting.nodes[size_t(level) - 1];
      sources.insert(sources.end(), nodes_here.begin(), nodes_here.end());
      nodes_here.clear();
    }
    if (long(waiting.nodes.size()) <= level) waiting.nodes.resize(size_t(level) + 1);
    std::vector<long>& above = waiting.nodes[size_t(level)];
    made.position = long(above.size());
    made.destination = keep_ ? created_++ : level * group + made.position;
    above.push_back(made.destination);
    aggregations.push_back(made);
    nodes = std::max(nodes, made.destination + 1);
    levels = std::max(levels, level + 1);
  }

  long granularity_;
  bool keep_;
  long created_ = 0;
};

}  // namespace seqpyramid
