// A stretch of a file as memory that no one can take away: whoever makes a mapped file shorter would end the process.
#include <pybind11/pybind11.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "module.hpp"

namespace fused_penalties {
namespace {

namespace py = pybind11;

// A map, as the handler below sees it. It may run at any time, on any thread, and take no lock: the places never move,
// and `begin` is 0 while the other two change.
struct Place {
    std::atomic<uintptr_t> begin{0}, end{0};
    std::atomic<bool> torn{false};
};

Place places[1024];
struct sigaction earlier;            // what handled SIGBUS before us
std::atomic<bool> passed_on{false};  // whether it has been called

uintptr_t page_size() {
    static const uintptr_t size = uintptr_t(sysconf(_SC_PAGESIZE));
    return size;
}

// The file ends before the address, or its disk failed there. The rest of the map becomes zeros, so that who reads it
// gets to the end and can ask whether it was torn.
bool mend(uintptr_t address) {
    for (Place& place : places) {
        const uintptr_t begin = place.begin, end = place.end;
        // Asked again: between the two loads, the place may have become another map's.
        if (begin == 0 || address < begin || address >= end || place.begin != begin) continue;
        const uintptr_t page = address - address % page_size();
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap(reinterpret_cast<void*>(page), end - page, PROT_READ, flags, -1, 0) == MAP_FAILED) return false;
        place.torn = true;
        return true;
    }
    return false;
}

void on_bus_error(int, siginfo_t* info, void*) {
    const int error = errno;
    const bool by_memory = info->si_code > 0;  // else another process sent it
    if (!by_memory || !mend(uintptr_t(info->si_addr))) {
        // The instruction is tried again, and meets the earlier handler. If that one in turn gives it to us, because
        // each was put over the other once, no one knows of it, and the process ends.
        struct sigaction end = {};
        end.sa_handler = SIG_DFL;
        sigaction(SIGBUS, passed_on.exchange(true) ? &end : &earlier, nullptr);
        if (!by_memory) raise(SIGBUS);
    }
    errno = error;
}

// Someone else, such as faulthandler, may have put a handler over ours since the last map.
void put_handler_first() {
    struct sigaction now;
    sigaction(SIGBUS, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return;
    earlier = now;
    passed_on = false;
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

std::mutex& changing_places() {
    static std::mutex mutex;
    return mutex;
}

class FileMap {
public:
    FileMap(int file, uint64_t begin, size_t nbytes) : before_(begin % page_size()), nbytes_(nbytes) {
        memory_ = mmap(nullptr, before_ + nbytes, PROT_READ, MAP_SHARED, file, off_t(begin - before_));
        if (memory_ == MAP_FAILED) refuse(errno);
        const std::lock_guard<std::mutex> lock(changing_places());
        put_handler_first();
        for (Place& place : places) {
            if (place.begin != 0) continue;
            place_ = &place;
            place.torn = false;
            place.end = address() + before_ + nbytes;
            place.begin = address();
            return;
        }
        munmap(memory_, before_ + nbytes_);
        refuse(ENOMEM);
    }
    ~FileMap() {
        place_->begin = 0;
        munmap(memory_, before_ + nbytes_);
    }
    FileMap(const FileMap&) = delete;
    FileMap& operator=(const FileMap&) = delete;

    bool torn() const { return place_->torn; }

    py::buffer_info buffer() const {
        return py::buffer_info(static_cast<const uint8_t*>(memory_) + before_, py::ssize_t(nbytes_));  // read-only
    }

private:
    [[noreturn]] static void refuse(int error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        throw py::error_already_set();
    }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(memory_); }

    size_t before_, nbytes_;  // the map begins with the page in which the stretch does
    void* memory_;
    Place* place_ = nullptr;
};

}  // namespace

void define_file_map(py::module_& m) {
    using py::arg;

    py::class_<FileMap>(m, "FileMap", py::buffer_protocol())
        .def(py::init<int, uint64_t, size_t>(), arg("file"), arg("begin"), arg("nbytes"))
        .def_property_readonly("torn", &FileMap::torn)
        .def_buffer([](const FileMap& map) { return map.buffer(); });
}

}  // namespace fused_penalties
