// Runs the CUDA kernels on the CPU.
//
//   emulate run SEEDS [PART [FAULT]]   every case whose name has PART in it, under SEEDS schedules
//   emulate fault FAULT SEEDS PART     whether one of those cases notices the fault of that number
//
// The last line is one JSON object.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "cases/case.h"
#include "emulator/fault.h"

namespace {

std::vector<Case> cases_with(const std::string& part) {
  std::vector<Case> chosen;
  for (const auto& cases : {cut_cases(), linear_cases(), attention_cases(), pattern_cases(),
                            norm_cases(), machine_cases()})
    for (const Case& c : cases)
      if ((c.kernel + ": " + c.problem).find(part) != std::string::npos) chosen.push_back(c);
  return chosen;
}

std::string attempt(const Case& c, std::uint64_t seed) {
  emulator::seed(seed);
  try {
    c.run(seed);
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

int run(int seeds, const std::string& part) {
  int failures = 0;
  const auto cases = cases_with(part);
  for (const Case& c : cases) {
    for (int seed = 0; seed < seeds; ++seed) {
      const std::string error = attempt(c, seed);
      if (error.empty()) continue;
      ++failures;
      std::printf("%s: %s, seed %d: %s\n", c.kernel.c_str(), c.problem.c_str(), seed,
                  error.c_str());
    }
  }
  std::printf("{\"kernels\": %zu, \"problems\": %zu, \"seeds\": %d, \"failures\": %d}\n",
              emulator::launched.size(), cases.size(), seeds, failures);
  return failures != 0;
}

// In a process of its own: a fault may do anything, and may do it forever.
bool notices(const Case& c, std::uint64_t seed, std::string& how) {
  int ends[2];
  if (pipe(ends)) throw std::runtime_error("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const std::string error = attempt(c, seed);
    [[maybe_unused]] const auto written = write(ends[1], error.data(), error.size());
    _exit(error.empty() ? 0 : 1);
  }
  close(ends[1]);
  char text[400];
  const auto length = read(ends[0], text, sizeof text);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return false;
  how = length > 0 ? std::string(text, length) : WIFSIGNALED(status) ? "signal" : "exit";
  return true;
}

int fault(int number, int seeds, const std::string& part) {
  emulator::fault = number;
  int tried = 0;
  for (int seed = 0; seed < seeds; ++seed)
    for (const Case& c : cases_with(part)) {
      ++tried;
      if (std::string how; notices(c, seed, how)) {
        for (char& letter : how)
          if (letter == '"' || letter == '\\' || letter == '\n') letter = ' ';
        std::printf("{\"caught\": true, \"tried\": %d, \"how\": \"%s\"}\n", tried, how.c_str());
        return 0;
      }
    }
  std::printf("{\"caught\": false, \"tried\": %d}\n", tried);
  return 1;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string verb = count > 1 ? arguments[1] : "";
  if (verb == "run" && count >= 3) {
    if (count > 4) emulator::fault = std::atoi(arguments[4]);
    return run(std::atoi(arguments[2]), count > 3 ? arguments[3] : "");
  }
  if (verb == "fault" && count == 5)
    return fault(std::atoi(arguments[2]), std::atoi(arguments[3]), arguments[4]);
  std::fprintf(stderr, "emulate run SEEDS [PART [FAULT]] | emulate fault FAULT SEEDS PART\n");
  return 2;
}
